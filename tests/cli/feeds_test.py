"""verify and doctor on decoders whose inputs are not just ids, a mask and caches of keys and values."""
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from conftest import DIFFERS, EQUAL, REFUSED

F32, F16, I64, I32 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32
HEADS, KV_HEADS, D, HIDDEN, VOCABULARY = 4, 2, 16, 8, 32
NUMPY = {F32: np.float32, F16: np.float16}
node = helper.make_node


def value(name, shape, element=F32):
    return helper.make_tensor_value_info(name, element, shape)


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def save(path, nodes, inputs, outputs, initializers, value_info=()):
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers, value_info=value_info)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def gqa_decoder(path, embeds=F32, mask=I64, per_layer=False, keep=False, kv_cache_dim=D):
    """One layer fed with embeddings, as the decoders of multimodal exports are."""
    rng = np.random.default_rng(1)
    weight = lambda name, *shape: constant(name, rng.standard_normal(shape).astype(NUMPY[embeds]))
    cache = ["batch", KV_HEADS, "past", kv_cache_dim]
    nodes = [node("MatMul", ["x", "w_q"], ["q"]), node("MatMul", ["x", "w_k"], ["k"]), node("MatMul", ["x", "w_v"], ["v"]),
             node("ReduceSum", ["attention_mask", "one"], ["ones"], keepdims=0), node("Sub", ["ones", "mask_one"], ["last"]),
             node("Cast", ["last"], ["seqlens"], to=I32), node("Shape", ["attention_mask"], ["extents"]),
             node("Gather", ["extents", "one"], ["total64"]), node("Cast", ["total64"], ["total"], to=I32),
             node("GroupQueryAttention", ["q", "k", "v", "past_key_values.0.key", "past_key_values.0.value", "seqlens", "total"],
                  ["y", "present.0.key", "present.0.value"], domain="com.microsoft", name="attention", num_heads=HEADS,
                  kv_num_heads=KV_HEADS),
             node("MatMul", ["y", "w_out"], ["logits"])]
    inputs = [value("inputs_embeds", ["batch", "tokens", HIDDEN], embeds), value("attention_mask", ["batch", "total"], mask),
              value("past_key_values.0.key", cache, embeds), value("past_key_values.0.value", cache, embeds)]
    first = "inputs_embeds"
    if per_layer:  # [batch, tokens, layers, width]
        inputs.insert(1, value("per_layer_inputs", ["batch", "tokens", 2, HIDDEN], embeds))
        nodes = [node("ReduceSum", ["per_layer_inputs", "two"], ["extra"], keepdims=0),
                 node("Add", [first, "extra"], ["with_extra"]), *nodes]
        first = "with_extra"
    if keep:  # logits of the last num_logits_to_keep tokens, or of all
        inputs.append(value("num_logits_to_keep", [], I64))
        nodes[-1] = node("MatMul", ["kept", "w_out"], ["logits"])
        nodes[-1:-1] = [node("Neg", ["num_logits_to_keep"], ["begin"]), node("Unsqueeze", ["begin", "zero"], ["begins"]),
                        node("Slice", ["y", "begins", "far", "one"], ["kept"])]
    nodes.insert(0 if not per_layer else 2, node("Identity", [first], ["x"]))
    return save(path, nodes, inputs,
                [value("logits", ["batch", "kept", VOCABULARY], embeds), value("present.0.key", cache, embeds),
                 value("present.0.value", cache, embeds)],
                [weight("w_q", HIDDEN, HEADS * D), weight("w_k", HIDDEN, KV_HEADS * D), weight("w_v", HIDDEN, KV_HEADS * D),
                 weight("w_out", HEADS * D, VOCABULARY), constant("one", np.array([1], np.int64)),
                 constant("two", np.array([2], np.int64)), constant("zero", np.array([0], np.int64)),
                 constant("far", np.array([2**31], np.int64)),
                 constant("mask_one", np.array([1], np.int32 if mask == I32 else np.int64))],
                [value("q", ["batch", "tokens", HEADS * D], embeds)])


FORMS = {
    "embeddings": {},
    "a_cache_whose_head_size_only_the_graph_tells": {"kv_cache_dim": "kv_cache_dim"},
    "per_layer_inputs_and_num_logits_to_keep": {"per_layer": True, "keep": True},
    "int32_mask": {"mask": I32},
    "half_precision": {"embeds": F16, "per_layer": True},
}


@pytest.mark.parametrize("form", FORMS)
def test_decoders_that_take_embeddings_are_run(kvshare, tmp_path, form):
    model = gqa_decoder(tmp_path / "model.onnx", **FORMS[form])
    done = kvshare("verify", model, "--against", model, "--via", "dropin")
    assert done.returncode == EQUAL and "decode 7" in done.stdout, done.stdout + done.stderr
    assert ("f16" in done.stdout) == (form == "half_precision"), done.stdout
    done = kvshare("doctor", model, "--via", "dropin")
    assert done.returncode == EQUAL, done.stdout + done.stderr
    assert "1 node ran in kvshare" in done.stdout and "one decode step" in done.stdout, done.stdout


def test_a_wrong_cache_is_seen(kvshare, tmp_path):
    model = gqa_decoder(tmp_path / "model.onnx")
    other = onnx.load(model)
    other.graph.node[-2].input[4] = other.graph.node[-2].input[3]  # keys as values
    onnx.save(other, tmp_path / "other.onnx")
    done = kvshare("verify", tmp_path / "other.onnx", "--against", model)
    lines = {line.split(" max diff ")[0].strip(): float(line.split(" max diff ")[1]) for line in done.stdout.splitlines()
             if " max diff " in line}
    assert done.returncode == DIFFERS and lines["prefill"] < 1e-4 < lines["decode 0"], done.stdout + done.stderr


def recurrent(path, mask=False):
    """Logits are the sum of all embeddings so far, plus the last two tokens' once more; no mask and no position."""
    state, conv = ["batch", HIDDEN, 1], ["batch", HIDDEN, 2]
    nodes = [node("Transpose", ["inputs_embeds"], ["columns"], perm=[0, 2, 1]),
             node("Concat", ["past_conv.0", "columns"], ["window"], axis=2),
             node("Slice", ["window", "back", "far", "axis"], ["present_conv.0"]),
             node("ReduceSum", ["columns", "axis"], ["fresh"], keepdims=1),
             node("Add", ["past_key_values.1.recurrent_state", "fresh"], ["present.1.recurrent_state"]),
             node("ReduceSum", ["present_conv.0", "axis"], ["recent"], keepdims=1),
             node("Add", ["present.1.recurrent_state", "recent"], ["sum"]), node("Transpose", ["sum"], ["row"], perm=[0, 2, 1])]
    inputs = [value("inputs_embeds", ["batch", "tokens", HIDDEN]), value("past_conv.0", conv),
              value("past_key_values.1.recurrent_state", state)]
    if mask:  # and how many ones the mask has
        inputs.append(value("attention_mask", ["batch", "all"], I32))
        nodes += [node("ReduceSum", ["attention_mask"], ["count"], keepdims=0), node("Cast", ["count"], ["ones"], to=F32),
                  node("Add", ["row", "ones"], ["first"])]
    nodes += [node("Sub", ["inputs_embeds", "inputs_embeds"], ["zeros"]), node("Add", ["zeros", "first" if mask else "row"], ["logits"])]
    return save(path, nodes, inputs,
                [value("logits", ["batch", "tokens", HIDDEN]), value("present_conv.0", conv), value("present.1.recurrent_state", state)],
                [constant("back", np.array([-2], np.int64)), constant("far", np.array([2**31], np.int64)),
                 constant("axis", np.array([2], np.int64))])


def recurrent_golden(folder, mask=False):
    """What `recurrent` should give, by numpy."""
    rng = np.random.default_rng(2)
    embeds = rng.standard_normal((1, 9, HIDDEN)).astype(np.float32)
    tokens, steps = 6, 3
    at = lambda end: (embeds[:, :end].astype(np.float64).sum(1) + embeds[:, end - 2:end].sum(1) + (end if mask else 0)).astype(np.float32)
    golden = {"inputs_embeds": embeds[:, :tokens], "lens": np.array([tokens]), "prefill_logits": np.repeat(at(tokens)[:, None], tokens, 1),
              "decode_inputs_embeds": embeds[:, tokens:].transpose(1, 0, 2),
              "decode_logits": np.stack([at(tokens + t + 1) for t in range(steps)])}
    if mask:
        golden["attention_mask"] = np.ones((1, tokens), np.int64)
        golden |= {f"decode_attention_mask_{t}": np.ones((1, tokens + t + 1), np.int64) for t in range(steps)}
    folder.mkdir(exist_ok=True)
    np.savez(folder / "golden.npz", **golden)
    return golden


@pytest.mark.parametrize("mask", [False, True], ids=["no_mask", "int32_mask"])
def test_states_of_convolutions_and_recurrences_go_from_step_to_step(kvshare, tmp_path, mask):
    model = recurrent(tmp_path / "model.onnx", mask)
    golden = recurrent_golden(tmp_path / "case", mask)
    done = kvshare("verify", model, "--golden", tmp_path / "case")
    assert done.returncode == EQUAL and "decode 2" in done.stdout, done.stdout + done.stderr
    golden["decode_logits"][2, 0, 3] += 0.01
    np.savez(tmp_path / "case" / "golden.npz", **golden)
    assert kvshare("verify", model, "--golden", tmp_path / "case").returncode == DIFFERS
    assert kvshare("verify", model, "--against", model).returncode == EQUAL


def test_a_golden_file_without_an_input_is_named(kvshare, tmp_path):
    model = recurrent(tmp_path / "model.onnx")
    golden = recurrent_golden(tmp_path / "case")
    for name in ("inputs_embeds", "decode_inputs_embeds"):
        np.savez(tmp_path / "case" / "golden.npz", **{k: v for k, v in golden.items() if k != name})
        assert f"golden.npz has no array '{name}'" in kvshare("verify", model, "--golden", tmp_path / "case").stderr


def test_extents_that_nothing_tells_are_asked_for_and_told(kvshare, tmp_path):
    model = onnx.load(recurrent(tmp_path / "model.onnx"))
    for tensor in [model.graph.input[1], model.graph.output[1]]:
        tensor.type.tensor_type.shape.dim[1].dim_param = "channels"
    onnx.save(model, tmp_path / "model.onnx")
    run = ("verify", tmp_path / "model.onnx", "--against", tmp_path / "model.onnx")
    done = kvshare(*run)
    assert (done.returncode, "nothing tells the extent of its axis 1; needs --extent channels=N" in done.stderr) == (REFUSED, True), done.stderr
    assert kvshare(*run, "--extent", f"channels={HIDDEN}").returncode == EQUAL
    assert kvshare(*run, "--extent", f"past_conv.0.1={HIDDEN}").returncode == EQUAL
    assert kvshare("doctor", tmp_path / "model.onnx", "--extent", f"channels={HIDDEN}").returncode == DIFFERS
    done = kvshare(*run, "--extent", f"channels={HIDDEN}", "--extent", f"chanels={HIDDEN}")
    assert "--extent: no input has an extent 'chanels' that is to be told; have 'channels'" in done.stderr, done.stderr


def test_two_models_that_take_different_prompts_are_not_compared(kvshare, tmp_path):
    plain = gqa_decoder(tmp_path / "plain.onnx")
    more = gqa_decoder(tmp_path / "more.onnx", per_layer=True)
    done = kvshare("verify", plain, "--against", more)
    assert (done.returncode, "input 'per_layer_inputs' is one of the second model only; needs two models that take the same prompt"
            in done.stderr) == (REFUSED, True), done.stderr
    done = kvshare("verify", more, "--against", plain)
    assert "input 'per_layer_inputs' is one of the first model only; needs two models that take the same prompt" in done.stderr
    wide = onnx.load(recurrent(tmp_path / "wide.onnx"))
    for tensor in [*wide.graph.input, *wide.graph.output]:
        for dim in tensor.type.tensor_type.shape.dim:
            if dim.dim_value == HIDDEN:
                dim.dim_value = 2 * HIDDEN
    onnx.save(wide, tmp_path / "wide.onnx")
    done = kvshare("verify", tmp_path / "wide.onnx", "--against", recurrent(tmp_path / "narrow.onnx"))
    assert ("input 'inputs_embeds' has shape [1, 24, 16] in one model and [1, 24, 8] in the other; needs two models that take the "
            "same prompt") in done.stderr, done.stderr


def test_doctor_runs_models_with_multi_head_attention(kvshare, tmp_path):
    """Its own ops serve none of it: it says so, after a run that a mask of zeros or a cache of eight rows would not survive."""
    cache = ["batch", HEADS, "past", D]
    nodes = [node("MatMul", ["inputs_embeds", "w"], ["q"]), node("Cast", ["attention_mask"], ["keys"], to=I32),
             node("MultiHeadAttention", ["q", "q", "q", "", "keys", "", "past_key_self_0", "past_value_self_0"],
                  ["logits", "present_key_self_0", "present_value_self_0"], domain="com.microsoft", num_heads=HEADS)]
    names = ["key_self_0", "value_self_0"]
    model = save(tmp_path / "model.onnx", nodes,
                 [value("inputs_embeds", ["batch", "tokens", HIDDEN]), value("attention_mask", ["batch", "total"], I64),
                  *[value(f"past_{name}", cache) for name in names]],
                 [value("logits", ["batch", "tokens", HEADS * D]), *[value(f"present_{name}", cache) for name in names]],
                 [constant("w", np.ones((HIDDEN, HEADS * D), np.float32))])
    done = kvshare("doctor", model)
    assert done.returncode == DIFFERS and "MultiHeadAttention" in done.stdout, done.stdout + done.stderr
    assert "a prefill of 24, then one decode step" in done.stdout
    assert kvshare("verify", model, "--against", model).returncode == EQUAL


def test_what_is_made_up_is_told(kvshare, tmp_path):
    """A drafter's keys and values are inputs of the graph, of lengths that no rule knows."""
    nodes = [node("Identity", ["inputs_embeds"], ["logits"]), node("ReduceSum", ["shared_kv.full.key"], ["unused"])]
    model = save(tmp_path / "model.onnx", nodes,
                 [value("inputs_embeds", ["batch", "q_len", HIDDEN]), value("shared_kv.full.key", ["batch", 1, "kv_len", D])],
                 [value("logits", ["batch", "q_len", HIDDEN]), value("unused", None)], [])
    told = "made up: extent 'kv_len' (all tokens so far), input 'shared_kv.full.key' (random)"
    assert told in kvshare("doctor", model).stdout
    done = kvshare("verify", model, "--against", model, "--steps", "0")
    assert done.returncode == EQUAL and told in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("lengths", [["batch"], ["batch", 1]], ids=["B", "B1"])
def test_one_attention_node_is_run_whatever_its_inputs_are_called(kvshare, tmp_path, lengths):
    """Its lengths and its cache are what the node reads there; com.microsoft need not be imported."""
    gqa = node("GroupQueryAttention", ["q", "k", "v", "pk", "pv", "sl", "tot"], ["y", "nk", "nv"], domain="com.microsoft",
               name="attention", num_heads=HEADS, kv_num_heads=KV_HEADS)
    cache = ["batch", KV_HEADS, "P", D]
    model = save(tmp_path / "gqa.onnx", [gqa],
                 [value("q", ["batch", "S", HEADS * D]), value("k", ["batch", "S", KV_HEADS * D]), value("v", ["batch", "S", KV_HEADS * D]),
                  value("pk", cache), value("pv", cache), value("sl", lengths, I32), value("tot", [], I32)],
                 [value("y", None), value("nk", None), value("nv", None)], [])
    without = onnx.load(model)
    del without.opset_import[1]
    onnx.save(without, tmp_path / "without_import.onnx")
    for path in (model, tmp_path / "without_import.onnx"):
        done = kvshare("doctor", path)
        assert (done.returncode, "1 node ran in kvshare" in done.stdout) == (EQUAL, True), done.stdout + done.stderr


def test_one_attention_node_with_lengths_is_run(kvshare, tmp_path):
    attention = node("Attention", ["q", "k", "v", "", "", "", "rows"], ["y"], name="attention")
    inputs = [value("q", ["batch", HEADS, 3, D]), value("k", ["batch", KV_HEADS, 16, D]), value("v", ["batch", KV_HEADS, 16, D]),
              value("rows", ["batch"], I64)]
    graph = helper.make_graph([attention], "g", inputs, [value("y", None)])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10), tmp_path / "model.onnx")
    done = kvshare("doctor", tmp_path / "model.onnx")
    assert (done.returncode, "input 'rows'" in done.stdout) == (EQUAL, False), done.stdout + done.stderr
