"""Decoders whose caches have a fixed number of rows (tests/data/static_*). ONNX Runtime's own answer to the original is the truth,
and PyTorch's logits where there are some. Caches begin with other numbers than 0: rows that were not written count nowhere."""

import cases
import numpy as np
import onnx
import pytest

MOBIUS = ["static_mobius", "static_mobius_llama"]
TARGETS = ["kvshare", "kvshare-attention"]


class Static:
    """A decoder and its caches; `begin` [B] are the rows that the step's tokens get."""

    def __init__(self, model, batch, library=None):
        self.session = cases.session(model, library)
        self.inputs = {entry.name: entry for entry in self.session.get_inputs()}
        rng = np.random.default_rng(2)
        self.caches = {name: rng.standard_normal([batch, *entry.shape[1:]]).astype(np.float32)
                       for name, entry in self.inputs.items() if "cache" in name or name.startswith("past")}

    def step(self, ids, begin):
        feeds = {"input_ids": ids, "position_ids": begin[:, None] + np.arange(ids.shape[1]), "write_indices": begin,
                 "nonpad_kv_seqlen": begin + ids.shape[1]}
        feeds = {name: array for name, array in feeds.items() if name in self.inputs}
        results = dict(zip([entry.name for entry in self.session.get_outputs()],
                           self.session.run(None, {**feeds, **self.caches}), strict=True))
        self.caches = {name: results[name.replace("past_key_values", "present") if name.startswith("past") else f"updated_{name}"]
                       for name in self.caches}
        return results["logits"]


def rewrite(kvshare, case, out, *options):
    return cases.rewrite(kvshare, cases.DATA / case / "model.onnx", out, *options)


# A prompt, tokens, a chunk, a step back as after a rejected draft, and sequences that stand at other rows.
STEPS = [(7, [0, 0]), (1, [7, 7]), (1, [8, 8]), (4, [9, 9]), (2, [11, 11]), (1, [13, 5]), (3, [14, 6]), (1, [17, 31])]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", MOBIUS)
def test_logits_and_caches_are_those_of_the_original(kvshare, library, tmp_path, target, case):
    out = tmp_path / "model.onnx"
    rewrite(kvshare, case, out, "--to", target)
    layers = len(cases.inspect(kvshare, out)["layers"])
    assert cases.operators(out)["kvshare", "Attention"] == layers and not cases.operators(out)["", "Attention"]
    original, rewritten = Static(cases.DATA / case / "model.onnx", 2), Static(out, 2, library)
    rng = np.random.default_rng(1)
    for tokens, begin in STEPS:
        ids = rng.integers(0, 30, (2, tokens))
        want, got = (decoder.step(ids, np.array(begin)) for decoder in (original, rewritten))
        np.testing.assert_allclose(got, want, atol=1e-4)
        for name, cache in original.caches.items():
            np.testing.assert_allclose(rewritten.caches[name], cache, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_torch_s_static_cache_gives_the_logits_of_pytorch(kvshare, library, tmp_path, target):
    out = tmp_path / "model.onnx"
    report = rewrite(kvshare, "static_torch", out, "--to", target)
    assert "repeat-kv" in report and "static-cache" in report
    assert cases.operators(out)["kvshare", "Attention"] == 2 and cases.inspect(kvshare, out)["repeat_nodes"] == 0
    original, rewritten = Static(cases.DATA / "static_torch" / "model.onnx", 1), Static(out, 1, library)
    golden = np.load(cases.DATA / "static_torch" / "logits.npz")
    at = 0
    for tokens in (9, 1, 1, 4, 1, 2):
        ids = golden["input_ids"][:, at:at + tokens]
        want, got = (decoder.step(ids, np.array([at])) for decoder in (original, rewritten))
        np.testing.assert_allclose(got, want, atol=1e-4)
        np.testing.assert_allclose(got, golden["logits"][:, at:at + tokens], atol=1e-4)
        at += tokens


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", [*MOBIUS, "static_torch"])
def test_a_second_rewrite_changes_nothing(kvshare, tmp_path, target, case):
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    rewrite(kvshare, case, first, "--to", target)
    cases.rewrite(kvshare, first, second, "--to", target)
    assert cases.load(first) == cases.load(second)


def scattered(path, window):
    """An own layer whose new rows end where its lengths do, and one that borrows, of opset 25."""
    helper, tensor = onnx.helper, onnx.TensorProto
    info = helper.make_tensor_value_info
    cache = ["B", 2, 24, 16]
    nodes = [helper.make_node("Shape", ["q"], ["queries"], start=2, end=3), helper.make_node("Sub", ["ends", "queries"], ["begin"])]
    nodes += [helper.make_node("TensorScatter", [f"cache_{x}", x, "begin"], [f"all_{x}"]) for x in "kv"]
    attributes = {"is_causal": 1, **({"left_window_size": window - 1} if window else {})}
    nodes.append(helper.make_node("Attention", ["q", "all_k", "all_v", "", "", "", "ends"], ["x"], **attributes))
    nodes.append(helper.make_node("Attention", ["x", "all_k", "all_v", "", "", "", "ends"], ["y"], is_causal=1, softcap=2.0))
    graph = helper.make_graph(
        nodes, "scattered",
        [info("q", tensor.FLOAT, ["B", 4, "S", 16]), *(info(x, tensor.FLOAT, ["B", 2, "S", 16]) for x in "kv"),
         *(info(f"cache_{x}", tensor.FLOAT, cache) for x in "kv"), info("ends", tensor.INT64, ["B"])],
        [info("y", tensor.FLOAT, ["B", 4, "S", 16]), *(info(f"all_{x}", tensor.FLOAT, cache) for x in "kv")],
        value_info=[info("x", tensor.FLOAT, ["B", 4, "S", 16])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=11), path)


@pytest.mark.parametrize("window", [0, 5])
def test_rows_that_end_where_the_lengths_do_are_appended_by_the_node(kvshare, library, tmp_path, window):
    source, out = tmp_path / "source.onnx", tmp_path / "model.onnx"
    scattered(source, window)
    cases.rewrite(kvshare, source, out, "--to", "kvshare")
    ops = cases.operators(out)
    assert ops["kvshare", "GroupQueryAttention"] == 2 and not ops["", "TensorScatter"]
    sessions, rng = [cases.session(source), cases.session(out, library)], np.random.default_rng(3)
    caches = [{f"cache_{x}": np.zeros((2, 2, 24, 16), np.float32) for x in "kv"} for _ in sessions]
    for tokens, ends in [(6, [6, 6]), (1, [7, 7]), (5, [12, 12]), (1, [13, 8]), (4, [17, 12]), (7, [24, 19]), (24, [24, 24])]:
        feeds = {"q": rng.standard_normal((2, 4, tokens, 16)).astype(np.float32), "ends": np.array(ends),
                 **{x: rng.standard_normal((2, 2, tokens, 16)).astype(np.float32) for x in "kv"}}
        want, got = (dict(zip(["y", "cache_k", "cache_v"], session.run(["y", "all_k", "all_v"], {**feeds, **cache}), strict=True))
                     for session, cache in zip(sessions, caches, strict=True))
        np.testing.assert_allclose(got["y"], want["y"], atol=1e-5)
        for name in ("cache_k", "cache_v"):
            for row, end in enumerate(ends):
                np.testing.assert_array_equal(got[name][row, :, :end], want[name][row, :, :end])
        caches = [{name: array for name, array in each.items() if name != "y"} for each in (want, got)]
