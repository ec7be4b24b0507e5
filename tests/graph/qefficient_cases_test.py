"""Decoders whose sharing layers write what they borrow into caches of their own (tests/data/qefficient_*), as QEfficient exports
them: rewritten, each such cache is the one that it always equals."""
import json

import cases
import numpy as np
import onnx
import onnx.inliner
import pytest
import variants
from onnx import TensorProto, helper

CASES = ["qefficient_gemma4", "qefficient_gemma4_layers"]
GONE = {f"past_{kind}.{layer}": f"past_{kind}.{source}" for layer, source in {3: 1, 4: 1, 5: 2}.items() for kind in ("key", "value")}
ROWS = 48


class Decoder:
    """Caches begin as zeros; an input x is handed on as x_RetainedState."""

    def __init__(self, model):
        self.session = cases.session(model)
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.caches = {entry.name: np.zeros((1, entry.shape[1], ROWS, entry.shape[3]), np.float32)
                       for entry in self.session.get_inputs() if entry.name.startswith("past")}

    def step(self, ids, positions):
        results = dict(zip(self.outputs, self.session.run(None, {"input_ids": ids, "position_ids": positions, **self.caches}),
                           strict=True))
        self.caches = {name: results[f"{name}_RetainedState"] for name in self.caches}
        return results["logits"]


def run(model, case):
    """The logits of the last prompt token and of each decode step beside the golden ones, and the caches at the end."""
    golden = np.load(cases.DATA / case / "golden.npz")
    decoder = Decoder(model)
    logits = [decoder.step(golden["input_ids"], golden["position_ids"])[0, -1]]
    logits += [decoder.step(ids[:, None], positions[:, None])[0, -1]
               for ids, positions in zip(golden["decode_input_ids"], golden["decode_position_ids"], strict=True)]
    return np.array(logits), np.concatenate([golden["prefill_logits"][0, -1:], golden["decode_logits"][:, 0]]), decoder.caches


def names(values):
    return {value.name for value in values}


@pytest.fixture(params=[*CASES, "inlined", "shuffled", "renamed"])
def model(request, tmp_path):
    """A case, or the first one under another surface."""
    original = cases.DATA / CASES[0] / "model.onnx"
    if request.param in CASES:
        return cases.DATA / request.param / "model.onnx"
    if request.param == "inlined":
        onnx.save(onnx.inliner.inline_local_functions(onnx.load(original)), tmp_path / "inlined.onnx")
        return tmp_path / "inlined.onnx"
    return variants.make(request.param, original, tmp_path / request.param)


def test_one_of_equal_caches_stays_and_logits_are_those_of_pytorch(kvshare, model, tmp_path):
    out, second = tmp_path / "out.onnx", tmp_path / "second.onnx"
    gone = {cache["past"]: cache["of"] for cache in cases.inspect(kvshare, model)["equal_caches"]}
    assert len(gone) == len(GONE)
    said = cases.rewrite(kvshare, model, out, "--to", "ort")
    assert all(f"'{past}' is '{source}'" in said for past, source in gone.items())
    before, after = cases.load(model).graph, cases.load(out).graph
    assert names(after.input) == names(before.input) - gone.keys()
    assert names(after.output) == names(before.output) - {f"{past}_RetainedState" for past in gone}
    want, golden, all_caches = run(model, CASES[0])
    got, _, caches = run(out, CASES[0])
    assert np.abs(want - golden).max() < 1e-4
    np.testing.assert_array_equal(got, want)
    for name, cache in all_caches.items():
        np.testing.assert_array_equal(caches[gone.get(name, name)], cache)
    cases.rewrite(kvshare, out, second, "--to", "ort")
    assert second.read_bytes() == out.read_bytes()


def test_the_copies_of_those_caches_go_too(kvshare, tmp_path):
    for case, of_layers in zip(CASES, (False, True), strict=True):
        original, out = cases.DATA / case / "model.onnx", tmp_path / "out.onnx"
        cases.rewrite(kvshare, original, out, "--to", "ort")
        before, after = cases.operators(original), cases.operators(out)
        for op in ("CtxScatter", "CtxGather"):
            assert after["com.qualcomm.cloud", op] == (0 if of_layers else 6)
            assert before["com.qualcomm.cloud", op] == (0 if of_layers else 12)


@pytest.mark.parametrize("case", CASES)
def test_inspect_and_a_dry_run_tell_of_them(kvshare, case):
    path = cases.DATA / case / "model.onnx"
    found = {cache["past"]: cache for cache in cases.inspect(kvshare, path)["equal_caches"]}
    assert {past: cache["of"] for past, cache in found.items()} == GONE
    assert all(cache["present"] == f"{past}_RetainedState" for past, cache in found.items())
    report = json.loads(cases.run(kvshare, "rewrite", path, "--to", "ort", "--dry-run", "--json").stdout)
    [saving] = [saving for saving in report["savings"] if saving["rule"] == "equal-caches"]
    assert saving["cache_bytes"] == sum(cache["bytes"] for cache in found.values()) == 6 * 16 * 4 * 32768
    said = cases.run(kvshare, "inspect", path).stdout
    assert "6 caches always hold what another does, 12.6 MB at 32768 tokens: 'past_key.3' what 'past_key.1' does, ..." in said
    skipped = cases.run(kvshare, "rewrite", path, "--to", "ort", "--dry-run", "--json", "--skip", "equal-caches").stdout
    assert not json.loads(skipped)["changed"]


@pytest.mark.parametrize("case", CASES)
def test_verify_feeds_either_model(kvshare, case, tmp_path):
    path, out = cases.DATA / case / "model.onnx", tmp_path / "out.onnx"
    cases.rewrite(kvshare, path, out, "--to", "ort")
    for arguments in ([out, "--golden", path.parent], [out, "--against", path]):
        done = cases.run(kvshare, "verify", *arguments, "--extent", f"ctx_len={ROWS}")
        assert done.returncode == 0 and "\nequal within" in done.stdout, done.stdout + done.stderr


# Of a past [B, C, D], new rows [B, S, D] and the place of the first: operators that write a cache, and their shapes.
UPDATES = {
    "Concat": [("Concat", ["{past}", "new"], "{present}", {"axis": 1})],
    "ScatterElements": [("Add", ["place", "columns"], "at", {}), ("ScatterElements", ["{past}", "at", "new"], "{present}", {"axis": 1})],
    "TensorScatter": [("TensorScatter", ["{past}", "new", "rows"], "{present}", {"axis": 1})],
    "Where": [("Less", ["steps", "place"], "old", {}), ("ReduceMean", ["new"], "mean", {"axes": [1]}),
              ("Where", ["old", "{past}", "mean"], "{present}", {})],
}


def written_by(update, opset):
    """Three caches, the first and the last of one key; `out` reads them all."""
    def of(layer, text):
        return {"{past}": f"past_{layer}", "{present}": f"present_{layer}", "new": f"new_{layer}"}.get(
            text, f"{text}_{layer}" if text in ("at", "old", "mean") else text)

    grows = update == "Concat"
    value = helper.make_tensor_value_info
    nodes, shape = [], ["B", "P" if grows else "C", 4]
    for layer, factor in enumerate(("one", "two", "one")):
        nodes.append(helper.make_node("Mul", ["key", factor], [f"new_{layer}"]))
        for op, inputs, output, attributes in UPDATES[update]:
            nodes.append(helper.make_node(op, [of(layer, name) for name in inputs], [of(layer, output)], **attributes))
        nodes.append(helper.make_node("ReduceSum", [f"present_{layer}"], [f"read_{layer}"], keepdims=0))
    nodes.append(helper.make_node("Sum", ["read_0", "read_1", "read_2"], ["out"]))
    caches = [value(f"past_{layer}", TensorProto.FLOAT, shape) for layer in range(3)]
    presents = [value(f"present_{layer}", TensorProto.FLOAT, ["B", "T" if grows else "C", 4]) for layer in range(3)]
    inputs = [value("key", TensorProto.FLOAT, ["B", "S", 4]), value("place", TensorProto.INT64, [1, 1, 1]),
              value("rows", TensorProto.INT64, ["B"])]
    constants = [helper.make_tensor("one", TensorProto.FLOAT, [1], [1]), helper.make_tensor("two", TensorProto.FLOAT, [1], [2]),
                 helper.make_tensor("columns", TensorProto.INT64, [1, 1, 4], [0] * 4),
                 helper.make_tensor("steps", TensorProto.INT64, [1, 8, 1], range(8))]
    graph = helper.make_graph(nodes, "caches", inputs + caches, [value("out", TensorProto.FLOAT, []), *presents], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize("update", UPDATES)
def test_whatever_operator_writes_them_the_numbers_stay(kvshare, tmp_path, update):
    original, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(written_by(update, 24 if update == "TensorScatter" else 17), original)
    cases.rewrite(kvshare, original, out, "--to", "ort")
    sessions = [cases.session(path) for path in (original, out)]
    inputs = [names(session.get_inputs()) for session in sessions]
    assert inputs[0] - inputs[1] == {"past_2"}
    caches = [{name: np.zeros((1, 0 if update == "Concat" else 8, 4), np.float32) for name in found if name.startswith("past")}
              for found in inputs]
    rng = np.random.default_rng(3)
    for step in range(4):
        feeds = {"key": rng.standard_normal((1, 1, 4)).astype(np.float32), "place": np.full((1, 1, 1), step), "rows": np.array([step])}
        outs = []
        for i, session in enumerate(sessions):
            given = {name: array for name, array in {**feeds, **caches[i]}.items() if name in inputs[i]}
            results = dict(zip([output.name for output in session.get_outputs()], session.run(None, given), strict=True))
            caches[i] = {name: results[name.replace("past", "present")] for name in caches[i]}
            outs.append(results["out"])
        assert outs[0] != 0 and outs[0] == outs[1]
    np.testing.assert_array_equal(caches[0]["past_2"], caches[1]["past_0"])
