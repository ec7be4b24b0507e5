"""`--to onnx25`: attention in operators of ai.onnx alone. Truth is PyTorch's or Hugging Face's logits, or the original's own answer."""

import json

import cases
import numpy as np
import onnx
import onnx.version_converter
import onnxruntime as ort
import pytest
import logits
from kvshare.decoder import Decoder, golden_steps
from onnx.reference import ReferenceEvaluator
from torch_cases_test import MASK_OPS, TORCH, Ragged, windows_of

GQA = ["head_shared_gqa", "head_b2_ragged", "e2b35_head_shared_gqa", "e2b_heads", "mixed_bias_asis", "mixed_bool_asis",
       "mixed_bias_b2_ragged_causal0", "e2b35_mixed_bias_asis", "head_shared_gqa_fp16", "webgpu_constant_empty"]
GOLDEN = [*TORCH, "default_attention", *GQA]
ATTENTION = ["Attention", "GroupQueryAttention"]


def standard(kvshare, case, out, *options):
    return cases.rewrite(kvshare, cases.DATA / case / "model.onnx", out, "--to", "onnx25", *options)


def check_operators(out, layers):
    """Attention of ai.onnx alone, masks of padding alone, and a model that the onnx package calls sound."""
    ops = cases.operators(out)
    assert ops["", "Attention"] == layers
    assert not any(count for (domain, op), count in ops.items() if domain and op in ATTENTION), ops
    assert not any(ops["", op] for op in [*MASK_OPS, *cases.MASK_OPS]
                   if op != "Where"), ops  # one Where says whether a step is a first prompt
    model = cases.load(out)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 25
    for node in model.graph.node:
        if node.op_type == "Attention":
            assert onnx.helper.get_node_attr_value(node, "is_causal") == 1


@pytest.mark.parametrize("case", GOLDEN)
def test_stock_onnx_runtime_gives_the_golden_logits(kvshare, tmp_path, case):
    out = tmp_path / "model.onnx"
    report = standard(kvshare, case, out)
    assert "left alone" not in report, report
    before, after = (cases.inspect(kvshare, model)["layers"] for model in (cases.DATA / case / "model.onnx", out))
    check_operators(out, len(before))
    for field in ["window", "kind", "source", "query_heads", "kv_heads", "head_size"]:
        assert [layer[field] for layer in after] == [layer[field] for layer in before], field
    assert not any(layer["note"] for layer in after)
    assert max(cases.differences(out, case)) <= cases.tolerance(case)


@pytest.mark.parametrize("case", ["torch_gemma4", "default_attention", "head_b2_ragged", "mixed_bool_asis"])
def test_kvshare_serves_the_result_as_a_drop_in(kvshare, library, tmp_path, case):
    out = tmp_path / "model.onnx"
    standard(kvshare, case, out)
    options = ort.SessionOptions()
    options.add_session_config_entry("kvshare.drop_in", "attention")
    options.register_custom_ops_library(str(library))
    golden = np.load(cases.DATA / case / "golden.npz")
    decoder = Decoder(ort.InferenceSession(str(out), options, providers=["CPUExecutionProvider"]), len(golden["input_ids"]))
    for got, want in golden_steps(decoder, golden):
        assert logits.error(got, want, cases.element(case)) <= cases.tolerance(case)


@pytest.mark.parametrize("case", ["torch_gemma4", "torch_mistral", "head_shared_gqa"])
def test_onnx_s_own_evaluator_agrees(kvshare, tmp_path, case):
    """Of a prompt and of a step after it, whose past the prompt has made."""
    out = tmp_path / "model.onnx"
    standard(kvshare, case, out)
    onnx.checker.check_model(str(out))
    evaluator, session = ReferenceEvaluator(str(out)), cases.session(out)
    rng, past, columns = np.random.default_rng(3), {}, 0
    for tokens in [11, 1]:
        columns += tokens
        feeds = {"input_ids": rng.integers(3, 40, (2, tokens)), "attention_mask": np.ones((2, columns), np.int64),
                 "position_ids": np.tile(np.arange(columns - tokens, columns), (2, 1))}
        feeds = {entry.name: feeds[entry.name] if entry.name in feeds
                 else past.get(entry.name, np.zeros((2, entry.shape[1], 0, entry.shape[3]), np.float32))
                 for entry in session.get_inputs()}
        want, got = session.run(None, feeds), evaluator.run(None, feeds)
        for left, right in zip(got, want, strict=True):
            assert np.abs(left - right).max() <= 1e-4
        named = zip([entry.name for entry in session.get_outputs()], want, strict=True)
        past = {name.replace("present", "past_key_values"): value for name, value in named if name.startswith("present")}


@pytest.mark.parametrize("pattern", ["left", "middle", "random"])
@pytest.mark.parametrize("case", ["torch_mistral", "torch_gemma3", "torch_gemma4"])
def test_padding_anywhere_hides_what_it_hid(kvshare, tmp_path, case, pattern):
    """Masks that compare columns: the same whatever attention_mask holds."""
    out = tmp_path / "model.onnx"
    assert "changed contract" not in standard(kvshare, case, out)
    ragged = Ragged(pattern, 5)
    for got, want in zip(ragged.run(out), ragged.run(cases.DATA / case / "model.onnx"), strict=True):
        assert np.abs(got - want).max() <= 1e-4


def test_masks_that_count_ones_keep_their_answer_where_the_ones_stand_together(kvshare, tmp_path):
    out = tmp_path / "model.onnx"
    assert "windows count columns of 'attention_mask'" in standard(kvshare, "default_attention", out)
    ragged = Ragged("left", 7)
    for got, want in zip(ragged.run(out), ragged.run(cases.DATA / "default_attention" / "model.onnx"), strict=True):
        assert np.abs(got - want).max() <= 1e-4


@pytest.mark.parametrize("case", ["torch_gemma4", "default_attention", "mixed_bool_asis", "head_shared_gqa"])
def test_other_nodes_are_what_onnx_s_version_converter_makes_of_them(kvshare, tmp_path, case):
    """Nothing but attention and what feeds it changes with the opset."""
    out, original = tmp_path / "model.onnx", cases.load(cases.DATA / case / "model.onnx")
    standard(kvshare, case, out)
    for node in list(original.graph.node):  # the converter knows no domain but ai.onnx
        if node.domain:
            original.graph.node.remove(node)
    known = {output for node in original.graph.node for output in node.output}
    given = {entry.name for entry in [*original.graph.input, *original.graph.initializer]}
    for name in {name for node in original.graph.node for name in node.input if name} - known - given:
        original.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    del original.graph.output[:], original.functions[:]
    converted = onnx.version_converter.convert_version(original, 25)
    of = {node.output[0]: node for node in converted.graph.node}
    kept = 0
    for node in cases.load(out).graph.node:
        if node.output[0] in of and "Attention" not in (node.op_type, of[node.output[0]].op_type):
            want = of[node.output[0]]
            assert (node.op_type, list(node.input)) == (want.op_type, list(want.input))
            assert sorted(map(str, node.attribute)) == sorted(map(str, want.attribute))
            kept += 1
    assert kept > 50


def test_operators_that_changed_are_those_that_onnx_says(kvshare, tmp_path):
    """A node that means something else in opset 25 keeps the model at its opset."""
    out = tmp_path / "model.onnx"
    for op, version in [("ReduceMean", 17), ("GroupNormalization", 20), ("Resize", 18), ("Split", 17), ("DFT", 19)]:
        model = cases.load(cases.DATA / "head_shared_gqa" / "model.onnx")
        del model.functions[:]
        for entry in model.opset_import:
            entry.version = version if entry.domain == "" else entry.version
        model.graph.node.insert(0, onnx.helper.make_node(op, ["input_ids"], ["odd"], name="odd"))
        source = cases.DATA / "head_shared_gqa" / "old.onnx"
        onnx.save(model, source)
        report = cases.rewrite(kvshare, source, out, "--to", "onnx25", "--dry-run")
        assert f"{op} 'odd' is of opset {version} and means something else in opset 25" in report, report


def test_what_has_no_words_in_onnx_stays(kvshare, tmp_path):
    out, source = tmp_path / "model.onnx", cases.DATA / "head_shared_gqa" / "sink.onnx"
    model = cases.load(cases.DATA / "head_shared_gqa" / "model.onnx")
    first = next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    first.attribute.append(onnx.helper.make_attribute("smooth_softmax", 1))
    onnx.save(model, source)
    report = cases.rewrite(kvshare, source, out, "--to", "onnx25")
    assert "has smooth_softmax 1, which ai.onnx's Attention has not" in report
    assert cases.operators(out)["com.microsoft", "GroupQueryAttention"] == 1


@pytest.mark.parametrize("case", ["default_attention", "head_b2_ragged", "e2b35_mixed_bias_asis"])
def test_fast_prefill_composes(kvshare, tmp_path, case):
    out = tmp_path / "model.onnx"
    standard(kvshare, case, out, "--fast-prefill")
    golden = np.load(cases.DATA / case / "golden.npz")
    got = cases.prefill(out, golden["input_ids"])
    lens = golden["lens"]
    want = golden["prefill_logits"][np.arange(len(lens)), lens - 1]
    whole = lens == golden["input_ids"].shape[1]  # `prefill` pads nothing
    assert got.shape[1] == 1
    assert np.abs(got[whole, 0] - want[whole]).max() <= cases.tolerance(case)


def test_options_that_it_cannot_serve_are_refused(kvshare):
    model = cases.DATA / "head_shared_gqa" / "model.onnx"
    for options, text in [(["--rope", "fold"], "ai.onnx's Attention takes a rotated query"),
                          (["--window-caches"], "needs --to kvshare"), (["--kv-cache", "fp16"], "needs --to kvshare")]:
        result = cases.run(kvshare, "rewrite", model, "--dry-run", "--to", "onnx25", *options)
        assert result.returncode == 3 and text in result.stderr, result.stderr


def test_own_layers_stay_where_they_shall(kvshare, tmp_path):
    out = tmp_path / "model.onnx"
    standard(kvshare, "head_shared_gqa", out, "--own", "keep")
    ops = cases.operators(out)
    shared = len(cases.shared_layers("head_shared_gqa"))
    assert ops["", "Attention"] == shared and ops["com.microsoft", "GroupQueryAttention"] == 10 - shared
    assert max(cases.differences(out, "head_shared_gqa")) <= cases.tolerance("head_shared_gqa")


def test_windows_are_those_of_the_model(kvshare, tmp_path):
    for case in TORCH:
        out = tmp_path / "model.onnx"
        standard(kvshare, case, out)
        left = [next((a.i for a in node.attribute if a.name == "left_window_size"), -1)
                for node in cases.load(out).graph.node if node.op_type == "Attention"]
        assert left == [window - 1 if window > 0 else -1 for window in windows_of(case)]
        assert json.loads((cases.DATA / case / "case.json").read_text())["layer_types"]


def first(model, op="GroupQueryAttention"):
    return next(node for node in model.graph.node if node.op_type == op)


def set_input(node, index, value):
    node.input.extend([""] * (index + 1 - len(node.input)))
    node.input[index] = value


def with_attribute(**attributes):
    def change(model):
        for name, value in attributes.items():
            for old in [old for old in first(model).attribute if old.name == name]:
                first(model).attribute.remove(old)
            first(model).attribute.append(onnx.helper.make_attribute(name, value))
    return change


def of_source(name, value):
    """Of the last layer with keys of its own, from which a full layer borrows."""
    def change(model):
        own = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"][3]
        own.attribute.append(onnx.helper.make_attribute(name, value))
    return change


def computed_table(model):
    model.graph.node.insert(0, onnx.helper.make_node("Abs", [first(model).input[7]], ["table"]))
    set_input(first(model), 7, "table")


def present_that_is_read(model):
    shared = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"][-1]
    model.graph.output.append(onnx.helper.make_tensor_value_info(shared.output[1], onnx.TensorProto.FLOAT, None))


def no_sizes(model):
    del model.graph.value_info[:]
    own = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    names = {name for node in own for name in [*node.input[3:5], *node.output[1:3]]}
    for entry in [*model.graph.input, *model.graph.output]:
        if entry.name in names:
            entry.type.tensor_type.shape.dim[3].dim_param = "D"


def old_opset(model):
    del model.functions[:]
    for entry in model.opset_import:
        entry.version = 16 if entry.domain == "" else entry.version


def in_order(model):
    """Sorts the nodes: each behind those that make its inputs."""
    made = {output for node in model.graph.node for output in node.output if output}
    nodes, known = list(model.graph.node), set()
    del model.graph.node[:]
    while nodes:
        ready = next(node for node in nodes if all(name in known or name not in made for name in node.input))
        known.update(ready.output)
        nodes.remove(ready)
        model.graph.node.append(ready)


MISSES = {
    "position_ids": (lambda model: set_input(first(model), 9, "input_ids"), "has position_ids, which ai.onnx's Attention has not"),
    "causal": (with_attribute(causal=0, local_window_size=-1), "has causal 0"),
    "window of the cache": (of_source("sliding_window_cache", 1), "source layer 3 keeps only a window of its cache"),
    "no key": (lambda model: set_input(first(model), 1, ""), "has only one of key and value; needs both, or both in its query"),
    "half a past": (lambda model: set_input(first(model), 4, ""), "has only a part of past and present; needs key and value of both"),
    "table": (computed_table, "the shape of rotary table 'table' is not known"),
    "read present": (present_that_is_read, "its output 1 '"),
    "sizes": (no_sizes, "its numbers of heads and its head size are not known"),
    "opset": (old_opset, "the model imports opset 16, which is not known to be valid in opset 25"),
}


@pytest.mark.parametrize("miss", MISSES)
def test_a_near_miss_says_its_reason(kvshare, tmp_path, miss):
    change, reason = MISSES[miss]
    source = cases.DATA / "head_shared_gqa" / "miss.onnx"
    model = cases.load(cases.DATA / "head_shared_gqa" / "model.onnx")
    change(model)
    onnx.save(model, source)
    assert reason in cases.rewrite(kvshare, source, tmp_path / "model.onnx", "--to", "onnx25", "--dry-run")


def test_a_borrower_without_a_head_size_stays(kvshare, tmp_path):
    source = cases.DATA / "mixed_bias_causal0" / "miss.onnx"
    model = cases.load(cases.DATA / "mixed_bias_causal0" / "model.onnx")
    no_sizes(model)
    onnx.save(model, source)
    report = cases.rewrite(kvshare, source, tmp_path / "model.onnx", "--to", "onnx25", "--dry-run")
    assert "its head size is not known, which a query of rank 4 needs" in report


@pytest.mark.parametrize("case", ["head_shared_gqa", "head_b2_ragged"])
def test_a_query_that_holds_key_and_value_is_split(kvshare, library, tmp_path, case):
    """As onnxruntime-genai's builder writes own layers."""
    source, out, back = cases.DATA / case / "packed.onnx", cases.DATA / case / "standard.onnx", tmp_path / "back.onnx"
    model = cases.load(cases.DATA / case / "model.onnx")
    own = [node for node in model.graph.node if node.op_type == "GroupQueryAttention" and "present" in node.output[1]
           and "past" in node.input[3]]
    for node in own:
        model.graph.node.append(onnx.helper.make_node("Concat", node.input[:3], [node.output[0] + "_packed"], axis=2))
        node.input[0], node.input[1], node.input[2] = model.graph.node[-1].output[0], "", ""
    in_order(model)
    onnx.save(model, source)
    assert len(own) == 10 - len(cases.shared_layers(case)) or case == "head_b2_ragged"
    assert max(cases.differences(source, case)) <= cases.tolerance(case)
    assert "left alone" not in cases.rewrite(kvshare, source, out, "--to", "onnx25")
    assert cases.operators(out)["", "Split"] == len(own) and not cases.operators(out)["com.microsoft", "GroupQueryAttention"]
    assert max(cases.differences(out, case)) <= cases.tolerance(case)
    assert "left alone" not in cases.rewrite(kvshare, out, back, "--to", "kvshare", "--rope", "keep")
    assert max(cases.differences(back, case, library)) <= cases.tolerance(case)


def test_norms_of_query_and_key_are_written_out(kvshare, library, tmp_path):
    """As onnxruntime-genai's builder writes Qwen3 for WebGPU. ONNX Runtime's CPU kernel refuses them: kvshare's is the truth."""
    case = "head_shared_gqa"
    source, out, back = cases.DATA / case / "normed.onnx", cases.DATA / case / "standard.onnx", tmp_path / "back.onnx"
    model, rng = cases.load(cases.DATA / case / "model.onnx"), np.random.default_rng(3)
    nodes = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    for node, layer in zip(nodes, cases.inspect(kvshare, cases.DATA / case / "model.onnx")["layers"], strict=True):
        for slot, name in [(14, f"q_norm_{layer['index']}"), (15, f"k_norm_{layer['index']}")]:
            weight = rng.standard_normal(layer["head_size"]).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
            set_input(node, slot, name)
        node.attribute.append(onnx.helper.make_attribute("q_norm_epsilon", 0.5))
    onnx.save(model, source)
    assert "left alone" not in cases.rewrite(kvshare, source, out, "--to", "onnx25")
    assert "left alone" not in cases.rewrite(kvshare, out, back, "--to", "kvshare", "--rope", "keep")
    tokens = np.load(cases.DATA / case / "golden.npz")["input_ids"]
    options = ort.SessionOptions()
    options.add_session_config_entry("kvshare.drop_in", "1")
    options.register_custom_ops_library(str(library))
    session = ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    want = Decoder(session).step(tokens, np.ones_like(tokens), np.arange(tokens.shape[1])[None])
    assert np.abs(want - cases.prefill(cases.DATA / case / "model.onnx", tokens)).max() > 1  # the norms matter
    assert np.abs(cases.prefill(out, tokens) - want).max() <= 1e-4
    assert np.abs(cases.prefill(back, tokens, library) - want).max() <= 1e-4


def test_kvshare_s_own_attention_is_not_turned_back(kvshare, tmp_path):
    first_out, out = tmp_path / "first.onnx", tmp_path / "model.onnx"
    cases.rewrite(kvshare, cases.DATA / "torch_gemma3" / "model.onnx", first_out, "--to", "kvshare-attention")
    report = cases.rewrite(kvshare, first_out, out, "--to", "onnx25")
    assert "is kvshare::Attention, whose key mask ai.onnx's Attention has not" in report
    assert cases.load(first_out) == cases.load(out)


@pytest.mark.parametrize("case", ["torch_gemma4", "head_shared_gqa"])
def test_what_kvshare_s_op_had_becomes_standard_too(kvshare, tmp_path, case):
    first_out, out = cases.DATA / case / "first.onnx", tmp_path / "model.onnx"
    cases.rewrite(kvshare, cases.DATA / case / "model.onnx", first_out, "--to", "kvshare")
    assert "left alone" not in cases.rewrite(kvshare, first_out, out, "--to", "onnx25")
    check_operators(out, len(windows_of(case)) if case.startswith("torch") else 10)
    assert max(cases.differences(out, case)) <= cases.tolerance(case)


@pytest.mark.parametrize("case", GOLDEN)
def test_the_result_becomes_kvshare_s_ops_again(kvshare, library, tmp_path, case):
    """From caches that are padded and scattered into, from lengths that are all keys, and from masks of padding alone."""
    standard_out, out = cases.DATA / case / "standard.onnx", tmp_path / "model.onnx"
    standard(kvshare, case, standard_out)
    report = cases.rewrite(kvshare, standard_out, out, "--to", "kvshare", "--rope", "keep")
    assert "left alone" not in report, report
    before, after = (cases.inspect(kvshare, model)["layers"] for model in (cases.DATA / case / "model.onnx", out))
    ops = cases.operators(out)
    assert ops["kvshare", "GroupQueryAttention"] == len(before) and not ops["", "Attention"] and not ops["", "TensorScatter"]
    for field in ["window", "kind", "source", "query_heads", "kv_heads", "head_size"]:
        assert [layer[field] for layer in after] == [layer[field] for layer in before], field
    assert max(cases.differences(out, case, library)) <= cases.tolerance(case)


def test_what_hides_no_padding_becomes_kvshare_s_ops_again(kvshare, library, tmp_path):
    """A step of a model with neither a mask nor lengths: all keys count."""
    from folded_cases_test import answers, folded
    shape = (2, 4, 9)
    whole, first, out = tmp_path / "whole.onnx", tmp_path / "first.onnx", tmp_path / "model.onnx"
    folded("torch_gemma4", shape, whole, np.ones((2, 13), np.int64))
    assert "left alone" not in cases.rewrite(kvshare, whole, first, "--to", "onnx25")
    assert "left alone" not in cases.rewrite(kvshare, first, out, "--to", "kvshare")
    assert cases.operators(out)["kvshare", "GroupQueryAttention"] == 5
    want = answers(cases.session(cases.DATA / "torch_gemma4" / "model.onnx"), shape)
    for got, expected in zip(answers(cases.session(out, library), shape), want, strict=True):
        assert np.abs(got - expected).max() <= 1e-4
