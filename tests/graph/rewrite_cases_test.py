"""Every public case, to every target: its structure, what must stay as it was, and its numbers in ONNX Runtime."""

import hashlib
import itertools

import cases
import logits
import numpy as np
import pytest
import variants


def check_structure(kvshare, model, case, target):
    ops = cases.operators(model)
    shared = len(cases.shared_layers(case))
    layers = len(cases.inspect(kvshare, model)["layers"])
    assert not any(ops["", op] for op in cases.MASK_OPS), ops
    assert not ops["", "Transpose"]
    gqa, ours = ops["com.microsoft", "GroupQueryAttention"], ops["kvshare", "GroupQueryAttention"]
    attention, our_attention = ops["", "Attention"], ops["kvshare", "Attention"]
    expected = {
        "ort": (layers, 0, 0, 0),
        "kvshare": (0, layers, 0, 0),
        "kvshare-attention": (layers - shared, 0, 0, shared),
    }[target]
    assert (gqa, ours, attention, our_attention) == expected


def check_layers(kvshare, model, case, windows):
    """The KV map of case.json, layer by layer."""
    inspection = cases.inspect(kvshare, model)
    borrows = {int(k): v for k, v in cases.shared_layers(case).items()}
    assert {l["index"]: l["source"] for l in inspection["layers"] if l["kind"] == "shared"} == borrows
    assert [l["window"] for l in inspection["layers"]] == windows
    assert inspection["borrowed_copies"] == 0 and inspection["mask_nodes"] == 0
    assert inspection["named_unused_presents"] == 0


def original_windows(kvshare, case):
    return [l["window"] for l in cases.inspect(kvshare, cases.DATA / case / "model.onnx")["layers"]]


@pytest.mark.parametrize("target,case", itertools.product(cases.TARGETS, cases.MIXED))
def test_all_shared_layers_of_a_mixed_graph_are_converted(kvshare, tmp_path, target, case):
    out = tmp_path / "model.onnx"
    report = cases.rewrite(kvshare, cases.DATA / case / "model.onnx", out, "--to", target)
    check_layers(kvshare, out, case, original_windows(kvshare, case))
    check_structure(kvshare, out, case, target)
    assert "left alone" not in report
    assert ("repaired: is_causal=1" in report) == ("causal0" not in case)
    assert ("changed contract" in report) == (target != "kvshare-attention")


@pytest.mark.parametrize("case", cases.MIXED + cases.HEAD)
def test_ort_target_gives_the_goldens_in_stock_onnx_runtime(kvshare, tmp_path, case):
    out = tmp_path / "model.onnx"
    cases.rewrite(kvshare, cases.DATA / case / "model.onnx", out, "--to", "ort")
    assert max(cases.differences(out, case)) <= cases.tolerance(case)


@pytest.mark.parametrize("options", [["--min-ort", "1.27"], ["--rope", "keep"], ["--rope", "keep", "--min-ort", "1.30.1"]])
def test_ort_target_gives_the_goldens_with_other_options(kvshare, tmp_path, options):
    case, out = "mixed_bias_asis", tmp_path / "model.onnx"
    cases.rewrite(kvshare, cases.DATA / case / "model.onnx", out, "--to", "ort", *options)
    named = cases.inspect(kvshare, out)["named_unused_presents"]
    assert named == (10 if "--min-ort" in options else 0)
    assert max(cases.differences(out, case)) <= 1e-4


@pytest.mark.parametrize("target,case", itertools.product(["kvshare", "kvshare-attention"], cases.MIXED + cases.HEAD))
def test_kvshare_targets_give_the_goldens(kvshare, library, tmp_path, target, case):
    if target == "kvshare-attention" and case in cases.HEAD:
        pytest.skip("that target leaves GroupQueryAttention alone")
    out = tmp_path / "model.onnx"
    cases.rewrite(kvshare, cases.DATA / case / "model.onnx", out, "--to", target)
    assert max(cases.differences(out, case, library)) <= cases.tolerance(case)


@pytest.mark.parametrize("options", [["--rope", "keep"], ["--own", "keep"]])
def test_kvshare_options_give_the_goldens(kvshare, library, tmp_path, options):
    case, out = "mixed_bias_asis", tmp_path / "model.onnx"
    cases.rewrite(kvshare, cases.DATA / case / "model.onnx", out, "--to", "kvshare", *options)
    assert max(cases.differences(out, case, library)) <= 1e-4


@pytest.mark.parametrize("case", cases.HEAD)
def test_upstreams_shared_form_swaps_the_operator_or_unnames_presents(kvshare, tmp_path, case):
    source = cases.DATA / case / "model.onnx"
    for target in ("kvshare", "ort"):
        out = tmp_path / f"{target}.onnx"
        cases.rewrite(kvshare, source, out, "--to", target)
        check_layers(kvshare, out, case, original_windows(kvshare, case))
        check_structure(kvshare, out, case, target)
    empties = [n for n in cases.load(tmp_path / "kvshare.onnx").graph.node if n.op_type == "ConstantOfShape"]
    assert not empties
    report = cases.rewrite(kvshare, source, tmp_path / "same.onnx", "--to", "kvshare-attention")
    assert "is GroupQueryAttention already" in report
    assert cases.load(tmp_path / "same.onnx") == cases.load(source)


@pytest.mark.parametrize("target", cases.TARGETS)
def test_a_model_of_attention_alone_is_converted(kvshare, library, tmp_path, target):
    case, out = "default_attention", tmp_path / "model.onnx"
    report = cases.rewrite(kvshare, cases.DATA / case / "model.onnx", out, "--to", target)
    windows = original_windows(kvshare, case)
    assert [l["window"] for l in cases.inspect(kvshare, out)["layers"]] == windows == [8] * 4 + [-1] + [8] * 4 + [-1]
    ops = cases.operators(out)
    domain = {"ort": "com.microsoft"}.get(target, "kvshare")
    assert not any(ops["", op] for op in cases.MASK_OPS), ops
    if target == "kvshare-attention":  # caches and their padding stay as they are
        assert ops["kvshare", "Attention"] == 10 and not ops["", "Attention"] and "changed contract" not in report
    else:
        assert ops[domain, "GroupQueryAttention"] == 10 and not ops["", "Attention"]
        assert "changed contract: caches are compact" in report
        assert ("several new tokens after a past for batch 1 only" in report) == (target == "ort")
        assert "source layer 3 does not rotate its keys itself" in report  # so the queries' embeddings stay as well
    assert ops["", "RotaryEmbedding"] == 15 and not ops["", "Transpose"]
    assert max(cases.differences(out, case, None if target == "ort" else library)) <= cases.tolerance(case)


@pytest.mark.parametrize("target", ["kvshare", "ort"])
def test_the_compact_caches_of_a_converted_model_serve_ragged_batches(kvshare, library, tmp_path, target):
    """As the report says: each row's mask is ones, then zeros. Each sequence alone in the original is the truth."""
    original, out = cases.DATA / "default_attention" / "model.onnx", tmp_path / "model.onnx"
    cases.rewrite(kvshare, original, out, "--to", target)
    rng, lens, width = np.random.default_rng(2), np.array([12, 7]), 12
    prompts, following = rng.integers(0, 160, (2, width)), rng.integers(0, 160, (2, 3))
    mask = lambda ones, columns: (np.arange(columns) < ones[:, None]).astype(np.int64)
    together = cases.open_decoder(out, 2, None if target == "ort" else library)
    got = [together.step(prompts, mask(lens, width), np.tile(np.arange(width), (2, 1)))]
    for t in range(3):
        got.append(together.step(following[:, t:t + 1], mask(lens + t + 1, width + t + 1), lens[:, None] + t))
    for row, n in enumerate(lens):
        alone = cases.open_decoder(original, 1)
        want = alone.step(prompts[row:row + 1, :n], np.ones((1, n), np.int64), np.arange(n)[None])
        assert np.abs(got[0][row, :n] - want[0]).max() <= 1e-4
        for t in range(3):
            want = alone.step(following[row:row + 1, t:t + 1], np.ones((1, n + t + 1), np.int64), np.array([[n + t]]))
            assert np.abs(got[t + 1][row] - want[0]).max() <= 1e-4


@pytest.mark.parametrize("target", ["kvshare", "ort"])
def test_a_constant_empty_key_no_longer_fixes_the_batch(kvshare, library, tmp_path, target):
    case, out = "webgpu_constant_empty", tmp_path / "model.onnx"
    report = cases.rewrite(kvshare, cases.DATA / case / "model.onnx", out, "--to", target)
    check_layers(kvshare, out, case, original_windows(kvshare, case))
    check_structure(kvshare, out, case, target)
    assert "repaired: the empty key was a constant" in report
    assert not cases.inspect(kvshare, out)["warnings"] or target == "ort"
    used = None if target == "ort" else library
    assert max(cases.differences(out, case, used)) <= cases.tolerance(case)
    prompts = np.random.default_rng(1).integers(0, 160, (3, 12))
    together = cases.prefill(out, prompts, used)
    for row, prompt in enumerate(prompts):
        alone = cases.prefill(cases.DATA / case / "model.onnx", prompt[None])  # what the original can do
        assert logits.error(together[row], alone[0], cases.element(case)) <= cases.tolerance(case)


def test_a_constant_empty_key_is_groupqueryattention_already(kvshare, tmp_path):
    source, out = cases.DATA / "webgpu_constant_empty" / "model.onnx", tmp_path / "model.onnx"
    report = cases.rewrite(kvshare, source, out, "--to", "kvshare-attention")
    assert "nothing changed" in report and "is GroupQueryAttention already" in report
    assert cases.load(out) == cases.load(source)


@pytest.mark.parametrize("target,case", itertools.product(cases.TARGETS, ["mixed_bias_asis", "mixed_bool_asis"]))
def test_a_second_rewrite_changes_nothing_and_says_so(kvshare, tmp_path, target, case):
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    cases.rewrite(kvshare, cases.DATA / case / "model.onnx", first, "--to", target)
    report = cases.rewrite(kvshare, first, second, "--to", target)
    assert "nothing to do: all 10 attention layers have the target's form already" in report
    assert cases.load(first) == cases.load(second)


@pytest.mark.parametrize("case", ["mixed_bias_asis", "mixed_bool_asis", "head_shared_gqa"])
@pytest.mark.parametrize("variant", variants.NAMES)
def test_matching_is_by_structure_never_by_name(kvshare, tmp_path, variant, case):
    model = variants.make(variant, cases.DATA / case / "model.onnx", tmp_path / "in")
    for target in cases.TARGETS:
        if target == "kvshare-attention" and case in cases.HEAD:
            continue
        out = tmp_path / "in" / f"{target}.onnx"
        cases.rewrite(kvshare, model, out, "--to", target)
        check_layers(kvshare, out, case, original_windows(kvshare, case))
        check_structure(kvshare, out, case, target)
    # ONNX Runtime's shape inference reads no shape constants from external data, so "external" has no numbers.
    if case == "mixed_bias_asis" and variant != "external":
        assert max(cases.differences(tmp_path / "in" / "ort.onnx", case)) <= 1e-4


@pytest.mark.parametrize("variant", ["renamed", "all"])
@pytest.mark.parametrize("case", ["e2b35_mixed_bias_asis", "mixed_bias_b2_ragged_causal0", "mixed_bias_fp16_asis"])
def test_other_cases_are_matched_by_structure_too(kvshare, tmp_path, variant, case):
    model = variants.make(variant, cases.DATA / case / "model.onnx", tmp_path / "in")
    out = tmp_path / "in" / "out.onnx"
    cases.rewrite(kvshare, model, out, "--to", "ort")
    check_layers(kvshare, out, case, original_windows(kvshare, case))
    check_structure(kvshare, out, case, "ort")
    assert max(cases.differences(out, case)) <= cases.tolerance(case)


@pytest.mark.parametrize("target", cases.TARGETS)
def test_layers_in_the_branches_of_an_if_borrow_from_outside(kvshare, library, tmp_path, target):
    """Each shared layer of the original lies in two branches now."""
    case = "mixed_bias_asis"
    model = variants.make("branched", cases.DATA / case / "model.onnx", tmp_path / "in")
    found = cases.inspect(kvshare, model)["layers"]
    shared = [layer for layer in found if layer["kind"] == "shared"]
    assert len(shared) == 2 * len(cases.shared_layers(case)) and all(layer["note"] == "" for layer in shared)
    assert {layer["place"].split(" of ")[0] for layer in shared} == {"then_branch", "else_branch"}
    out = tmp_path / "in" / "out.onnx"
    cases.rewrite(kvshare, model, out, "--to", target)
    ops = cases.operators(out)
    assert not any(ops["", op] for op in cases.MASK_OPS) and not ops["", "Transpose"], ops
    inner = [node for holder in cases.load(out).graph.node if holder.op_type == "If"
             for branch in holder.attribute for node in branch.g.node]
    domain = {"ort": "com.microsoft"}.get(target, "kvshare")
    attention = [node for node in inner if node.op_type in ("Attention", "GroupQueryAttention")]
    assert len(attention) == len(shared) and all(node.domain == domain for node in attention)
    assert max(cases.differences(out, case, library)) <= 1e-4


@pytest.mark.parametrize("target,variant,holder", [(t, *v) for t in cases.TARGETS for v in (("looped", "Loop"), ("scanned", "Scan"))])
def test_layers_in_loops_compute_what_they_did(kvshare, library, tmp_path, target, variant, holder):
    """No goldens know these models: ONNX Runtime's own answer to the original is the truth."""
    case = "mixed_bias_causal0"
    model = variants.make(variant, cases.DATA / case / "model.onnx", tmp_path / "in")
    shared = [layer for layer in cases.inspect(kvshare, model)["layers"] if layer["kind"] == "shared"]
    assert len(shared) == len(cases.shared_layers(case)) and all(layer["note"] == "" for layer in shared)
    assert all(layer["place"].startswith(f"body of {holder} '") for layer in shared)
    out = tmp_path / "in" / "out.onnx"
    cases.rewrite(kvshare, model, out, "--to", target)
    assert not any(cases.operators(out)["", op] for op in ["Transpose", *cases.MASK_OPS])
    bodies = [a.g for n in cases.load(out).graph.node if n.op_type == holder for a in n.attribute if a.name == "body"]
    inner = [node for body in bodies for node in body.node]
    domain = {"ort": "com.microsoft"}.get(target, "kvshare")
    assert len([n for n in inner if n.op_type in ("Attention", "GroupQueryAttention") and n.domain == domain]) == len(shared)
    assert any(n.op_type == "RotaryEmbedding" for n in inner) == (target == "kvshare-attention")
    # An output that is a query next is of no norm: where its scores are large, rounding grows. A wrong layer is off by 2 or more.
    for got, want in zip(cases.logits_of(out, case, library), cases.logits_of(model, case), strict=True):
        assert abs(got - want).max() <= (2e-3 if variant == "looped" else 1e-4)


@pytest.mark.parametrize("target,case", itertools.product(cases.TARGETS, ["mixed_bias_asis", "head_shared_gqa"]))
def test_everything_else_stays(kvshare, tmp_path, target, case):
    source, out = cases.DATA / case / "model.onnx", tmp_path / "model.onnx"
    cases.rewrite(kvshare, source, out, "--to", target)
    before, after = cases.load(source), cases.load(out)
    assert list(before.functions) == list(after.functions)
    assert list(before.metadata_props) == [entry for entry in after.metadata_props if entry.key != "kvshare"]
    assert (before.ir_version, before.producer_name, before.producer_version) == (
        after.ir_version, after.producer_name, after.producer_version)
    assert list(before.graph.input) == list(after.graph.input)
    assert list(before.graph.output) == list(after.graph.output)
    added = [(o.domain, o.version) for o in after.opset_import if o not in before.opset_import]
    expected = [] if target == "ort" or (target == "kvshare-attention" and case == "head_shared_gqa") else [("kvshare", 1)]
    assert added == expected
    kept = {n.name: n for n in after.graph.node}
    for node in before.graph.node:
        if node.name in kept and node.op_type not in ("Attention", "GroupQueryAttention"):
            assert kept[node.name] == node
    weights = {i.name: i for i in after.graph.initializer}
    for initializer in before.graph.initializer:
        if initializer.external_data:
            assert weights[initializer.name] == initializer
    digest = [hashlib.sha256((m.parent / "model.onnx.data").read_bytes()).hexdigest() for m in (source, out)]
    assert digest[0] == digest[1]


def test_unread_inputs_go_on_request_only(kvshare, tmp_path):
    source = cases.DATA / "mixed_bias_asis" / "model.onnx"
    out = tmp_path / "model.onnx"
    cases.rewrite(kvshare, source, out, "--to", "ort")
    assert "position_ids" in [i.name for i in cases.load(out).graph.input]
    cases.rewrite(kvshare, source, out, "--to", "ort", "--prune-inputs")
    assert "position_ids" not in [i.name for i in cases.load(out).graph.input]
    assert max(cases.differences(out, "mixed_bias_asis")) <= 1e-4


def provenance(model):
    """The lines that tell how a model came to be, each as {what: value}."""
    entries = [entry.value for entry in cases.load(model).metadata_props if entry.key == "kvshare"]
    assert len(entries) <= 1
    return [dict(pair.split("=") for pair in line.split()) for value in entries for line in value.splitlines()]


def test_a_written_model_tells_how_it_came_to_be(kvshare, tmp_path):
    version = cases.run(kvshare, "--version").stdout.strip()
    source = cases.DATA / "mixed_bias_causal0" / "model.onnx"
    first, second, third = tmp_path / "first.onnx", tmp_path / "second.onnx", tmp_path / "third.onnx"
    cases.rewrite(kvshare, source, first, "--to", "kvshare", "--own", "keep", "--skip", "fold-rotary")
    [line] = provenance(first)
    assert line == {"version": version, "target": "kvshare", "keep_own": "1", "rope": "fold", "min_ort": "1.31",
                    "prune_inputs": "0", "fast_prefill": "0", "window_caches": "-1", "kv_cache": "as-it-was",
                    "rules": "shared-attention,dead-nodes"}
    cases.rewrite(kvshare, first, second, "--to", "kvshare", "--rope", "keep")
    assert [line["rules"] for line in provenance(second)] == ["shared-attention,dead-nodes", "own-layers"]
    assert [line["rope"] for line in provenance(second)] == ["fold", "keep"]
    cases.rewrite(kvshare, second, third, "--to", "kvshare", "--rope", "keep")  # nothing is left to do
    assert third.read_bytes() == second.read_bytes()
    assert {p.key for p in cases.load(source).metadata_props} == {p.key for p in cases.load(first).metadata_props} - {"kvshare"}


def test_a_rewrite_that_changes_nothing_says_nothing_in_the_model(kvshare, tmp_path):
    source = cases.DATA / "mixed_bias_asis" / "model.onnx"
    cases.rewrite(kvshare, source, tmp_path / "out.onnx", "--to", "kvshare", *(f"--skip={rule}" for rule in (
        "own-attention", "shared-attention", "shared-gqa", "fold-rotary", "own-layers", "unname-presents", "dead-nodes")))
    assert provenance(tmp_path / "out.onnx") == []


@pytest.mark.parametrize("arguments,code,text", [
    (["--to", "ort", "--min-ort", "1.26"], 3, "refuse key and value of length 0"),
    (["--to", "kvshare-attention", "--rope", "fold"], 3, "needs --rope keep"),
    (["--to", "ort", "--min-ort", "soon"], 2, "--min-ort soon: needs a version, e.g. 1.31"),
    (["--to", "ort", "--skip", "shared"], 2, "no rule 'shared'; have equal-caches, repeat-kv, own-attention, scattered-cache, own-key-mask, shared-attention"),
    (["--to", "cuda"], 2, "cuda"),
])
def test_options_that_cannot_be_served_are_refused(kvshare, tmp_path, arguments, code, text):
    out = tmp_path / "model.onnx"
    result = cases.run(kvshare, "rewrite", cases.DATA / "mixed_bias_asis" / "model.onnx", "-o", out, *arguments)
    assert result.returncode == code
    assert text in result.stdout + result.stderr
    assert not out.exists()
