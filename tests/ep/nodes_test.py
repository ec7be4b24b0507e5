"""The execution provider's options, claims and reasons, on graphs of a few nodes and in every place that a node may stand."""
import json
import pathlib

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import ep_harness
import golden_cases
import golden_in_ep
import harness
import masks_property_test
import specs
import variants
from gqa_test import Problem
from harness import assert_close
from property_test import OPS, Draw

GQA = ("com.microsoft", "GroupQueryAttention")
ATTENTION = ("", "Attention")
PRESENTS = ("output", "present_key", "present_value")


def gqa_model(p, outputs=PRESENTS):
    return harness.model("GroupQueryAttention", "com.microsoft", harness.GQA_INPUTS, harness.GQA_OUTPUTS, p.inputs, outputs, p.attributes)


def check_case(name, sess, tolerance_of=None):
    prefill, decode, tolerance, stats = golden_cases.differences(tolerance_of or name, harness.ORT_LIB, session=sess)
    assert max(prefill, decode) <= tolerance, (prefill, decode)
    assert stats["ran"] > 0


# --- options

def test_mode_off_claims_nothing():
    p = Problem(1, S=1, lens=[9], past=8)
    sess = ep_harness.session(gqa_model(p), mode="off")
    assert ep_harness.assigned(sess) == [] and ep_harness.attention_elsewhere(sess) == [GQA]


@pytest.mark.parametrize("options,text", [
    ({"mode": "fast"}, "KvshareExecutionProvider: its option mode is 'fast'; needs"),
    ({"causal_alignment": "left"}, "its option causal_alignment is 'left'; needs auto, spec or lower_right"),
    ({"speed": "4"}, "'speed' is none of its options; have mode, causal_alignment"),
])
def test_a_wrong_option_is_an_error_that_names_the_right_ones(options, text):
    with pytest.raises(Exception, match="KvshareExecutionProvider") as caught:
        ep_harness.session(gqa_model(Problem(1, S=1, lens=[1])), **options)
    assert text in str(caught.value)


@pytest.mark.parametrize("alignment,right", [("auto", True), ("lower_right", True), ("spec", False)])
def test_borrowed_keys_are_read_from_the_last_one_unless_the_spec_is_asked_for(alignment, right):
    sess = ep_harness.session(golden_in_ep.path("mixed_bias_asis"), causal_alignment=alignment, mode="nodes")
    prefill, decode, tolerance, _ = golden_cases.differences("mixed_bias_asis", harness.ORT_LIB, session=sess)
    assert prefill <= tolerance
    assert decode <= tolerance if right else decode > 1


@pytest.mark.parametrize("alignment,lines", [("auto", 1), ("spec", 0), ("lower_right", 0)])
def test_one_warning_says_what_is_repaired(alignment, lines, capfd):
    ep_harness.session(golden_in_ep.path("mixed_bias_asis"), causal_alignment=alignment, mode="nodes", log_severity=2)
    said = [line for line in capfd.readouterr().err.splitlines() if "repaired:" in line]
    assert len(said) == lines
    assert all("(and 4 more)" in line and "causal_alignment = spec follows ONNX" in line for line in said)


# --- claims

def test_what_no_kernel_serves_stays_onnx_runtimes_with_the_reason(capfd):
    p = Problem(2, S=1, lens=[9], past=8, kv_cache_bit_width=4)
    sess = ep_harness.session(gqa_model(p), log_severity=1)
    assert ep_harness.assigned(sess) == []
    said = capfd.readouterr().err
    assert ("left to ONNX Runtime: GroupQueryAttention 'node': attribute 'kv_cache_bit_width' is 4; needs 0 for a cache of f32"
            in said)


@pytest.mark.parametrize("op", OPS)
def test_random_calls_agree_with_float64(op):
    draw, make, _ = OPS[op]
    ran = 0
    for case in range(120):
        d = Draw(20261129, list(OPS).index(op), case)
        choices = draw(d)
        spec = make(d.rng, **choices)
        try:
            sess = ep_harness.session(spec.model(), causal_alignment="spec")
        except Exception:  # ONNX Runtime's schema refuses it whoever serves it
            with pytest.raises(Exception):
                harness.session(spec.model(), lib=None)
            continue
        if not ep_harness.assigned(sess):
            continue
        counters = harness.Counters()
        counters.reset()
        fault = spec.fault(harness.run(sess, spec.inputs))
        assert fault is None, f"case {case}: {choices}\n{fault}"
        assert counters.read()["ran"] == 1, choices
        ran += 1
    assert ran > 40


def test_presents_that_nobody_reads_are_not_made(tmp_path):
    p = Problem(3, S=1, lens=[9], past=9, kind="shared")
    model = onnx.load_from_string(gqa_model(p))
    del model.graph.output[1:]
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    options.add_provider_for_devices(ep_harness.devices(), {})
    sess = ort.InferenceSession(model.SerializeToString(), options)
    output, = sess.run(None, p.inputs)
    assert_close(output, harness.run(harness.session(gqa_model(p), drop_in="gqa"), p.inputs)["output"], np.float32)
    events = json.loads(pathlib.Path(sess.end_profiling()).read_text())
    node, = [e["args"] for e in events if e["cat"] == "Node" and e["args"]["op_name"] == "GroupQueryAttention"]
    assert node["provider"] == ep_harness.NAME and int(node["output_size"]) == output.nbytes


def test_present_bound_onto_past_is_written_in_place():
    p = Problem(4, S=1, lens=[9], past=16)
    sess = ep_harness.session(gqa_model(p))
    want = harness.run(harness.session(gqa_model(p), drop_in="gqa"), p.inputs)
    binding = sess.io_binding()
    caches = {n: ort.OrtValue.ortvalue_from_numpy(p.inputs[n]) for n in ("past_key", "past_value")}
    for name, array in p.inputs.items():
        binding.bind_ortvalue_input(name, caches.get(name) or ort.OrtValue.ortvalue_from_numpy(array))
    binding.bind_output("output", "cpu")
    for name, cache in zip(("present_key", "present_value"), caches.values()):
        binding.bind_ortvalue_output(name, cache)
    sess.run_with_iobinding(binding)
    assert_close(binding.get_outputs()[0].numpy(), want["output"], np.float32)
    for name, cache in caches.items():
        got, before = cache.numpy(), p.inputs[name]
        np.testing.assert_array_equal(got[:, :, :8], before[:, :, :8])
        np.testing.assert_array_equal(got[:, :, 9:], before[:, :, 9:])
        np.testing.assert_array_equal(got[:, :, 8], want[name.replace("past", "present")][:, :, 8])


# --- what ONNX Runtime gives to other providers by name, of 1.31 and later

HIDDEN = ["layers.0/", "layers.3/", "layers.5/self_attn", "layers.6/self_attn", "Slice", "Unsqueeze", "Reshape", "Transpose"]


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("mode", golden_in_ep.MODES)
def test_nodes_that_a_session_gives_to_another_provider_read_what_onnx_says(hidden, mode):
    entries = {"session.name_based_layer_assignment": f"CPUExecutionProvider({hidden})"}
    sess = ep_harness.session(golden_in_ep.path("mixed_bias_causal0"), entries=entries, mode=mode)
    check_case("mixed_bias_causal0", sess)
    assert {op for _, op in ep_harness.assigned(sess)} <= {"Attention", "GroupQueryAttention"}
    assert bool(ep_harness.attention_elsewhere(sess)) == hidden.startswith("layers")


def test_a_present_that_only_another_providers_nodes_read_is_made():
    c = dict(D=8, Hkv=1, G=2, window=3, borrowers=1, B=1, past=5, S=1, dtype=np.float32, bools=False, full_too=False, gqa=True,
             one_mask=False, peek=None, fixed=False, late=False)
    model = onnx.load_from_string(masks_property_test.model_of(c))
    del model.graph.output[1:]
    feed = masks_property_test.feed_of(c, np.random.default_rng(1))
    sess = ep_harness.session(model.SerializeToString(),
                              entries={"session.name_based_layer_assignment": "CPUExecutionProvider(t_,b_,out0)"})
    assert ep_harness.assigned(sess) == [GQA] and ep_harness.attention_elsewhere(sess) == [ATTENTION]
    want = harness.session(model.SerializeToString(), lib=None).run(None, feed)
    assert_close(sess.run(None, feed)[0], want[0], np.float32, least=2e-4)


# --- domain kvshare

def test_a_rewritten_node_needs_no_other_registration():
    p = Problem(5, S=1, lens=[9], past=8)
    model = harness.model("GroupQueryAttention", "kvshare", harness.GQA_INPUTS, harness.GQA_OUTPUTS, p.inputs, PRESENTS, p.attributes)
    got = harness.run(ep_harness.session(model), p.inputs)
    assert_close(got["output"], harness.run(harness.session(model), p.inputs)["output"], np.float32)


# --- places

LEVELS = {name: getattr(ort.GraphOptimizationLevel, name)
          for name in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", golden_in_ep.MODES)
def test_every_optimization_level_gives_the_golden_logits(level, mode):
    sess = ep_harness.session(golden_in_ep.path("mixed_bias_asis"), optimization=LEVELS[level], mode=mode)
    check_case("mixed_bias_asis", sess)
    assert not ep_harness.attention_elsewhere(sess)


@pytest.mark.parametrize("mode", golden_in_ep.MODES)
@pytest.mark.parametrize("variant", [*(n for n in variants.NAMES if n != "external"), *variants.BODIES])  # ORT does not load it
def test_other_forms_of_the_model_give_the_logits_of_onnx_runtime(variant, mode, tmp_path):
    case = "mixed_bias_causal0"
    path = variants.make(variant, golden_in_ep.path(case), tmp_path)
    sess = ep_harness.session(str(path), mode=mode)
    assert not ep_harness.attention_elsewhere(sess)
    stock = harness.session(str(path), lib=None)
    golden = np.load(pathlib.Path(harness.DATA) / case / "golden.npz")
    feed = {i.name: golden[i.name] if i.name in golden.files else np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32)
            for i in stock.get_inputs()}
    counters = harness.Counters()
    counters.reset()
    for got, want in zip(sess.run(None, feed), stock.run(None, feed)):
        assert_close(got, want, np.float32, least=1e-4 * np.abs(want).max())  # the second turn of a loop adds to the first's
    assert counters.read()["ran"] >= golden_in_ep.attention_nodes(case)


@pytest.mark.parametrize("mode", golden_in_ep.MODES)
def test_a_session_with_other_memory_and_strict_shapes_gives_the_golden_logits(mode):
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = options.enable_mem_reuse = False
    for entry in ("session.strict_shape_type_inference", "session.use_device_allocator_for_initializers",
                  "session.use_env_allocators", "session.disable_prepacking"):
        options.add_session_config_entry(entry, "1")
    options.add_provider_for_devices(ep_harness.devices(), {"mode": mode})
    check_case("mixed_bias_causal0", ort.InferenceSession(golden_in_ep.path("mixed_bias_causal0"), options))


@pytest.mark.parametrize("mode", golden_in_ep.MODES)
def test_weights_that_the_caller_keeps_give_the_golden_logits(mode):
    """The model comes as bytes, its weights as tensors of the caller's."""
    whole = onnx.load(golden_in_ep.path("mixed_bias_causal0"))
    model = onnx.load(golden_in_ep.path("mixed_bias_causal0"), load_external_data=False)
    external = {i.name for i in model.graph.initializer if i.data_location == TensorProto.EXTERNAL}
    weights = {i.name: ort.OrtValue.ortvalue_from_numpy(onnx.numpy_helper.to_array(i))
               for i in whole.graph.initializer if i.name in external}
    options = ort.SessionOptions()
    options.add_external_initializers(list(weights), list(weights.values()))
    options.add_provider_for_devices(ep_harness.devices(), {"mode": mode})
    check_case("mixed_bias_causal0", ort.InferenceSession(model.SerializeToString(), options))


def test_a_model_without_com_microsoft_is_served():
    spec = specs.attention(np.random.default_rng(8), opset=23)
    model = onnx.load_from_string(spec.model())
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 23))
    sess = ep_harness.session(model.SerializeToString())
    assert ep_harness.assigned(sess) == [ATTENTION]
    assert spec.fault(harness.run(sess, spec.inputs)) is None


def test_a_model_without_ai_onnx_is_served():
    p = Problem(6, S=1, lens=[9], past=8)
    model = onnx.load_from_string(gqa_model(p))
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    sess = ep_harness.session(model.SerializeToString())
    assert ep_harness.assigned(sess) == [GQA]
    assert_close(harness.run(sess, p.inputs)["output"], folded_truth(p), np.float32)


def folded_truth(p):
    return harness.folded(p.truth()[0]) if p.truth()[0].ndim == 4 else p.truth()[0]


def test_a_local_function_around_the_node_is_served():
    p = Problem(7, S=1, lens=[9], past=8)
    model = onnx.load_from_string(gqa_model(p))
    node, = model.graph.node
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    opsets = [helper.make_opsetid("", harness.OPSET), helper.make_opsetid("com.microsoft", 1)]
    model.functions.append(helper.make_function("local", "Layer", [n for n in node.input if n], list(node.output), [inner], opsets))
    node.CopyFrom(helper.make_node("Layer", [n for n in node.input if n], list(node.output), name="call", domain="local"))
    model.opset_import.append(helper.make_opsetid("local", 1))
    sess = ep_harness.session(model.SerializeToString())
    assert ep_harness.assigned(sess) == [GQA]
    assert_close(harness.run(sess, p.inputs)["output"], folded_truth(p), np.float32)


@pytest.mark.parametrize("mode", golden_in_ep.MODES)
def test_a_function_that_is_inlined_late_changes_no_plan(mode):
    """ONNX Runtime divides the graph, inlines the function, and divides again: by then the masks are one node."""
    model = onnx.load(golden_in_ep.path("mixed_bias_causal0"))
    opset, = (i for i in model.opset_import if not i.domain)
    twice = helper.make_node("Add", ["x", "x"], ["y"])
    model.functions.append(helper.make_function("local", "Twice", ["x"], ["y"], [twice], [opset]))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node.append(helper.make_node("Twice", ["logits"], ["twice"], domain="local"))
    model.graph.output.append(helper.make_tensor_value_info("twice", TensorProto.FLOAT, None))
    sess = ep_harness.session(model.SerializeToString(), entries={"session.disable_aot_function_inlining": "1"}, mode=mode)
    assert not ep_harness.attention_elsewhere(sess)
    check_case("mixed_bias_causal0", sess)


@pytest.mark.parametrize("mode", golden_in_ep.MODES)
def test_a_model_in_orts_own_format_is_served(mode, tmp_path):
    """Saved without the provider; it carries no names of kernels since 1.10."""
    target = str(tmp_path / "model.ort")
    options = ort.SessionOptions()
    options.optimized_model_filepath = target
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    ort.InferenceSession(golden_in_ep.path("mixed_bias_asis"), options, providers=["CPUExecutionProvider"])
    sess = ep_harness.session(target, mode=mode)
    assert not ep_harness.attention_elsewhere(sess)
    check_case("mixed_bias_asis", sess)


def test_an_optimized_model_that_was_saved_here_runs_without_the_provider(tmp_path):
    """Of mode nodes: no node is another one than before."""
    target = str(tmp_path / "model.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = target
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_provider_for_devices(ep_harness.devices(), {"mode": "nodes"})
    ort.InferenceSession(str(variants.make("inlined", golden_in_ep.path("mixed_bias_causal0"), tmp_path / "whole")), options)
    prefill, _, tolerance, _ = golden_cases.differences("mixed_bias_causal0", harness.ORT_LIB, session=harness.session(target, lib=None))
    assert prefill <= tolerance


@pytest.mark.parametrize("mode", golden_in_ep.MODES)
def test_a_session_that_makes_an_ep_context_model_is_served(mode, tmp_path):
    entries = {"ep.context_enable": "1", "ep.context_file_path": str(tmp_path / "context.onnx")}
    sess = ep_harness.session(golden_in_ep.path("mixed_bias_asis"), entries=entries, mode=mode)
    assert not ep_harness.attention_elsewhere(sess)
    check_case("mixed_bias_asis", sess)
