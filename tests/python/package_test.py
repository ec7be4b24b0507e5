"""The installed wheel beside the onnxruntime of this environment, which may be any from 1.20 on."""
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import kvshare
import kvshare._tools

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"
ORT = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
with_ep = pytest.mark.skipif(ORT < (1, 24), reason=f"onnxruntime {onnxruntime.__version__} has no plugin execution provider")
without_ep = pytest.mark.skipif(ORT >= (1, 24), reason="onnxruntime has the plugin execution provider")


def golden_differences(session, case):
    """The largest difference of each step from golden logits."""
    golden = np.load(case / "golden.npz")
    inputs = {i.name: i for i in session.get_inputs()}
    outputs = [o.name for o in session.get_outputs()]
    batch = golden["input_ids"].shape[0]
    past = {name: np.zeros((batch, i.shape[1], 0, i.shape[3]), np.float32) for name, i in inputs.items() if name.startswith("past")}

    def step(ids, mask, positions):
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past}
        got = dict(zip(outputs, session.run(None, {name: feeds[name] for name in inputs})))
        past.update({name: got[name.replace("past_key_values", "present")] for name in past})
        return got["logits"]

    real = np.arange(golden["input_ids"].shape[1])[None] < golden["lens"][:, None]
    prefill = step(golden["input_ids"], golden["attention_mask"], golden["position_ids"])
    yield np.abs(prefill - golden["prefill_logits"])[real].max()
    for t, ids in enumerate(golden["decode_input_ids"]):
        logits = step(ids[:, None], golden[f"decode_attention_mask_{t}"], golden["decode_position_ids"][t][:, None])
        yield np.abs(logits[:, 0] - golden["decode_logits"][t]).max()


def borrower(path, op_domain="com.microsoft"):
    """One own and one shared layer, of an opset that every onnxruntime here loads: the shared one has key and value of
    length 0."""
    def gqa(inputs, outputs, name):
        return helper.make_node("GroupQueryAttention", inputs, outputs, name, domain=op_domain, num_heads=4, kv_num_heads=2)

    empty = helper.make_tensor("empty", TensorProto.FLOAT, [1, 0, 32], [])
    nodes = [gqa(["q0", "k0", "v0", "past_k", "past_v", "seqlens_k", "total"], ["a0", "present_k", "present_v"], "own"),
             gqa(["q1", "empty", "empty", "present_k", "present_v", "seqlens_k", "total"], ["a1", "unused_k", "unused_v"], "shared")]
    f32 = {"q0": [1, 1, 64], "k0": [1, 1, 32], "v0": [1, 1, 32], "q1": [1, 1, 64], "past_k": [1, 2, "P", 16], "past_v": [1, 2, "P", 16]}
    ints = {"seqlens_k": [1], "total": []}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in f32.items()]
    inputs += [helper.make_tensor_value_info(n, TensorProto.INT32, s) for n, s in ints.items()]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("a0", "a1", "present_k", "present_v")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [empty])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def feeds(past=7):
    draw = np.random.default_rng(0).standard_normal
    shapes = {"q0": (1, 1, 64), "k0": (1, 1, 32), "v0": (1, 1, 32), "q1": (1, 1, 64), "past_k": (1, 2, past, 16), "past_v": (1, 2, past, 16)}
    return {**{n: draw(s).astype(np.float32) for n, s in shapes.items()}, "seqlens_k": np.array([past], np.int32),
            "total": np.array(past + 1, np.int32)}


def attention(q, k, v):
    """Of one token, in float64: q [1, 1, Hq·D], k and v [1, Hkv, T, D]."""
    heads = q.reshape(4, 16).astype(np.float64)
    group = 4 // k.shape[1]
    rows = []
    for h in range(4):
        scores = k[0, h // group].astype(np.float64) @ heads[h] / 4
        weights = np.exp(scores - scores.max())
        rows.append(weights @ v[0, h // group] / weights.sum())
    return np.concatenate(rows)


def check(session):
    given = feeds()
    a0, a1, k, v = session.run(["a0", "a1", "present_k", "present_v"], given)
    for q, got in (("q0", a0), ("q1", a1)):
        assert np.abs(got.reshape(-1) - attention(given[q], k, v)).max() < 1e-5


def test_the_libraries_are_where_the_package_says():
    for kind in ("ort", "dropin"):
        assert os.path.isfile(kvshare.library_path(kind))
    assert kvshare.get_library_path() == kvshare.library_path() and kvshare.get_ep_name() == "KvshareExecutionProvider"
    with pytest.raises(kvshare.RefusedError, match="only in the source .target kvshare_ort_cuda.; have ort, dropin"):
        kvshare.library_path("cuda")
    with pytest.raises(kvshare.InvalidInputError, match="'x' is not known; have ort, dropin"):
        kvshare.library_path("x")


def test_the_command_is_installed_and_has_the_packages_version():
    command = [os.path.join(os.path.dirname(sys.executable), "kvshare"), "--version"]
    assert kvshare.__version__ in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_inspect_and_rewrite_take_paths_and_protos(tmp_path):
    case = DATA / "mixed_bias_asis" / "model.onnx"
    inspection = kvshare.inspect(case)
    assert [layer.source for layer in inspection.layers if layer.kind == "shared"] == [3, 3, 3, 3, 4]
    assert inspection.cuda is None and kvshare.inspect(case, cuda="1.29").cuda.attention_on_cpu > 0
    with pytest.raises(kvshare.InvalidInputError, match="option 'cuda' = '2.0'"):
        kvshare.inspect(case, cuda="2.0")
    report = kvshare.rewrite(case, tmp_path / "out.onnx")
    assert report.changed and (tmp_path / "out.onnx").exists()
    assert all(layer.domain == "kvshare" for layer in kvshare.inspect(tmp_path / "out.onnx").layers)
    proto = onnx.load(borrower(tmp_path / "b.onnx"))
    assert [layer.kind for layer in kvshare.inspect(proto).layers] == ["own", "shared"]
    rewritten = kvshare.rewrite(proto)
    assert rewritten.changed and {node.domain for node in rewritten.model.graph.node} == {"kvshare"}
    assert not kvshare.rewrite(proto, dry_run=True).model


@with_ep  # for older hosts the case is of a later ONNX
def test_rewrite_makes_smaller_caches(tmp_path):
    case = DATA / "mixed_bias_causal0" / "model.onnx"
    golden = np.load(DATA / "mixed_bias_causal0" / "golden.npz")
    prompt = {"input_ids": golden["input_ids"]}
    np.savez(tmp_path / "prompt.npz", **prompt)
    for given in (prompt, tmp_path / "prompt.npz"):
        report = kvshare.rewrite(case, tmp_path / "small.onnx", kv_cache="int8", calibrate=given, window_caches=8, weights="small.data")
        assert report.changed and sum(layer.row_bytes for layer in report.after.layers) * 4 == sum(
            layer.row_bytes for layer in report.before.layers)
    assert (tmp_path / "small.data").exists()
    with pytest.raises(kvshare.InvalidInputError, match="option 'kv_cache' is 'int3'; needs int8, int4, fp8, bf16 or fp16"):
        kvshare.rewrite(case, dry_run=True, kv_cache="int3")
    with pytest.raises(kvshare.InvalidInputError, match="without kv_cache; needs kv_cache"):
        kvshare.rewrite(case, dry_run=True, scale_per_tensor=True)
    with pytest.raises(kvshare.KvshareError, match="calibrat"):
        kvshare.rewrite(case, dry_run=True, kv_cache="int8")
    with pytest.raises(kvshare.InvalidInputError, match="npz"):
        kvshare.rewrite(case, dry_run=True, kv_cache="int8", calibrate=tmp_path / "absent.npz")


@with_ep
def test_results_have_every_field_that_the_library_answers(tmp_path, monkeypatch):
    """A field that a dataclass lacks would be dropped without a word."""
    answers = []
    call = kvshare._tools._call

    def listening(*arguments, **options):
        answers.append(call(*arguments, **options))
        return answers[-1]

    def has_all(kind, answer, but=frozenset()):
        assert set(answer) == {field.name for field in dataclasses.fields(kind)} - but

    monkeypatch.setattr(kvshare._tools, "_call", listening)
    case, small = DATA / "mixed_bias_causal0", tmp_path / "small.onnx"
    kvshare.inspect(case / "model.onnx", cuda="1.29")
    has_all(kvshare.Inspection, answers[-1])
    has_all(kvshare.AttentionLayer, answers[-1]["layers"][0])
    has_all(kvshare.CudaPlacement, answers[-1]["cuda"])
    kvshare.inspect(DATA / "qefficient_gemma4" / "model.onnx")
    has_all(kvshare.EqualCache, answers[-1]["equal_caches"][0])
    kvshare.rewrite(case / "model.onnx", small, kv_cache="int8", calibrate={"input_ids": np.arange(1, 41)[None]})
    has_all(kvshare.RewriteReport, answers[-1], {"model"})  # the caller's, not the library's
    has_all(kvshare.RuleOutcome, answers[-1]["outcomes"][0])
    has_all(kvshare.RuleSaving, answers[-1]["savings"][0])
    kvshare.verify(small, against=case / "model.onnx", steps=1)
    has_all(kvshare.Verification, answers[-1])
    has_all(kvshare.StepDifference, answers[-1]["steps"][0])
    has_all(kvshare.CodesCheck, answers[-1]["codes"])
    has_all(kvshare.CacheRounding, answers[-1]["codes"]["caches"][0])
    kvshare.doctor(case / "model.onnx")
    has_all(kvshare.Diagnosis, answers[-1])
    has_all(kvshare.NodeCount, answers[-1]["nodes"][0])
    (tmp_path / "genai_config.json").write_text('{"model": {"decoder": {}}}')
    kvshare.genai(tmp_path)
    has_all(kvshare.GenaiReport, answers[-1])


def test_failures_are_exceptions_with_one_line(tmp_path):
    with pytest.raises(kvshare.InvalidInputError, match="no such file") as failure:
        kvshare.inspect(tmp_path / "absent.onnx")
    assert "\n" not in str(failure.value) and isinstance(failure.value, ValueError)
    with pytest.raises(kvshare.RefusedError, match="takes a rotated query"):
        kvshare.rewrite(DATA / "mixed_bias_asis" / "model.onnx", to="kvshare-attention", rope="fold", dry_run=True)
    with pytest.raises(kvshare.InvalidInputError, match="needs output, or dry_run=True"):
        kvshare.rewrite(DATA / "mixed_bias_asis" / "model.onnx")
    for options in ({"to": "x"}, {"own": "x"}, {"rope": "x"}):
        with pytest.raises(kvshare.InvalidInputError, match=f"option '{next(iter(options))}' is 'x'; needs "):
            kvshare.rewrite(DATA / "mixed_bias_asis" / "model.onnx", dry_run=True, **options)
    with pytest.raises(kvshare.InvalidInputError, match="needs a path or an onnx.ModelProto"):
        kvshare.inspect(3)


WRONG = {
    "bytes": ({"model": b"x"}, "model is a bytes; needs a path"),
    "zero": ({"model": "a\0b"}, "is no text in UTF-8; needs a path that is, without zeros"),
    "surrogate": ({"model": "a\udcff"}, "is no text in UTF-8; needs a path that is"),
    "output": ({"output": b"x"}, "output is a bytes; needs a path"),
    "text": ({"to": None}, "option 'to' = None: needs str"),
    "switch": ({"fast_prefill": 1}, "option 'fast_prefill' = 1: needs bool"),
    "number": ({"window_caches": 2**70}, "option 'window_caches' = 1180591620717411303424: needs an integer from "),
    "one name": ({"skip": "equal-caches"}, "option 'skip' = 'equal-caches': needs a list of names"),
    "prompt": ({"kv_cache": "int8", "calibrate": [1]}, "calibrate is a list; needs arrays by the names of inputs, or a path"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_has_the_wrong_type_is_named(name):
    given, message = WRONG[name]
    with pytest.raises(kvshare.InvalidInputError, match=re.escape(message)):
        kvshare.rewrite(**{"model": DATA / "mixed_bias_asis" / "model.onnx", "dry_run": True, **given})


def test_a_model_that_does_not_become_bytes_is_refused():
    class TooLarge:
        graph = onnx.GraphProto()

        def SerializeToString(self):
            raise ValueError("exceeds 2 GiB")

    with pytest.raises(kvshare.InvalidInputError, match="does not become bytes .exceeds 2 GiB.; needs the model's path"):
        kvshare.inspect(TooLarge())


@with_ep  # for older hosts the case is of a later ONNX
@pytest.mark.parametrize("given, message", [
    ({"tolerance": float("nan")}, "option 'tolerance' = 'nan': needs a finite number"), ({"seed": -1}, "option 'seed' = -1: needs an integer from 0"),
    ({"tolerance": "x"}, "option 'tolerance' = 'x': needs float"), ({"prompt": 0}, "option 'prompt' = '0': needs at least 1 token"),
    ({"steps": 10**7}, "option 'steps' = '10000000': needs 0 to 100000 decode steps"),
    ({"entries": {"kvshare.drop_in": 1}}, "option 'entries' has 1 for 'kvshare.drop_in'; needs text for text"),
    ({"extents": {"x": -1}}, "option 'extents' = -1: needs an integer from 0"),
])
def test_verify_names_what_no_model_makes_right(given, message):
    case = DATA / "mixed_bias_asis" / "model.onnx"
    with pytest.raises(kvshare.InvalidInputError, match=re.escape(message)):
        kvshare.verify(case, against=case, **given)


@with_ep
def test_an_interrupt_ends_a_verify():
    program = ("import kvshare._runtime, os, signal, threading\n"  # an interrupt of imports would be theirs
               "threading.Timer(2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
               f"case = {str(DATA / 'mixed_bias_asis' / 'model.onnx')!r}\n"
               "kvshare.verify(case, against=case, steps=20000)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt", done.stderr


def test_a_models_names_are_whatever_they_are(tmp_path):
    """Neither UTF-8 nor free of line breaks; in a message they are written out."""
    model = onnx.load(borrower(tmp_path / "m.onnx"))
    model.graph.node[1].name = "s" * 8
    data = model.SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data.replace(b"s" * 8, b"sh\xff\n\x1bed"[:8].ljust(8, b".")))
    assert kvshare.inspect(tmp_path / "m.onnx").layers[1].node == "sh\ufffd\n\x1bed."
    with pytest.raises(kvshare.InvalidInputError, match=r"no\\nsuch") as failure:
        kvshare.inspect(tmp_path / "no\nsuch")
    assert "\n" not in str(failure.value)


def test_without_onnxruntime_and_numpy_files_are_examined(tmp_path):
    """A wheel brings neither."""
    path = borrower(tmp_path / "m.onnx")
    program = ("import sys\nsys.modules.update(onnxruntime=None, numpy=None)\nimport kvshare\n"
               f"assert len(kvshare.inspect({str(path)!r}).layers) == 2 and kvshare.rewrite({str(path)!r}, dry_run=True).changed\n"
               f"kvshare.doctor({str(path)!r})")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: import of onnxruntime"), done.stderr


def test_failures_name_options_as_the_package_does(tmp_path):
    case = DATA / "mixed_bias_asis" / "model.onnx"
    with pytest.raises(kvshare.RefusedError, match="option 'to' = 'ort' option 'min_ort' = '1.26'"):
        kvshare.rewrite(case, to="ort", min_ort="1.26", dry_run=True)
    report = kvshare.rewrite(DATA / "head_shared_gqa" / "model.onnx", to="kvshare-attention", dry_run=True)
    assert any("option 'to' = 'kvshare-attention'" in outcome.reason for outcome in report.outcomes)
    (tmp_path / "model.onnx.data").write_bytes(b"another model's")
    with pytest.raises(kvshare.RefusedError, match="option 'weights'"):
        kvshare.rewrite(case, tmp_path / "out.onnx")


def test_inspect_names_equal_caches():
    model = onnx.load(DATA / "qefficient_gemma4" / "model.onnx", load_external_data=False)
    inputs = {i.name for i in model.graph.input}
    found = kvshare.inspect(DATA / "qefficient_gemma4" / "model.onnx").equal_caches
    assert len(found) == 6 and all(isinstance(cache, kvshare.EqualCache) for cache in found)
    assert all(cache.past in inputs and cache.of in inputs and cache.past != cache.of and cache.bytes > 0 for cache in found)
    assert {cache.present for cache in found} <= {o.name for o in model.graph.output}


def test_genai_edits_a_folder_and_puts_it_back(tmp_path):
    config = tmp_path / "genai_config.json"
    config.write_text('{"model": {"decoder": {}}}')
    done = kvshare.genai(tmp_path, options={"mode": "nodes"})
    [provider] = json.loads(config.read_text())["model"]["decoder"]["session_options"]["provider_options"]
    assert provider == {kvshare.get_ep_name(): {"mode": "nodes"}}
    assert (done.config, done.library, len(done.changes)) == (str(config), kvshare.library_path(), 1)
    assert pathlib.Path(done.backup).read_text() == '{"model": {"decoder": {}}}'
    copied = kvshare.genai(tmp_path, tmp_path.with_name(tmp_path.name + "-copy"))
    assert (copied.backup, copied.config) == ("", str(tmp_path.with_name(tmp_path.name + "-copy") / "genai_config.json"))
    assert kvshare.genai(tmp_path, undo=True).library == "" and config.read_text() == '{"model": {"decoder": {}}}'
    with pytest.raises(kvshare.InvalidInputError, match="nothing to undo"):
        kvshare.genai(tmp_path, undo=True)
    with pytest.raises(kvshare.InvalidInputError, match="needs undo alone"):
        kvshare.genai(tmp_path, undo=True, options={"mode": "off"})
    for options, needs in ({"mode": "fast"}, "its option mode is 'fast'; needs fuse, nodes or off"), ({"speed": "4"}, "have mode, causal_alignment"):
        with pytest.raises(kvshare.InvalidInputError, match=needs):
            kvshare.genai(tmp_path, options=options)
    assert os.listdir(tmp_path) == ["genai_config.json"]
    config.write_text('{"model": {"decoder": {"session_options": {"provider_options": [{"cuda": {}}]}}}}')
    with pytest.raises(kvshare.RefusedError, match="runs on provider 'cuda'"):
        kvshare.genai(tmp_path)


def test_an_unchanged_model_runs_through_the_override(tmp_path):
    path = borrower(tmp_path / "m.onnx")
    check(onnxruntime.InferenceSession(str(path), kvshare.session_options(path)))


@pytest.mark.parametrize("given", [False, True])
def test_a_rewritten_model_runs_as_custom_ops(tmp_path, given):
    path = tmp_path / "r.onnx"
    kvshare.rewrite(borrower(tmp_path / "m.onnx"), path)
    options = kvshare.session_options(path if given else None)
    check(onnxruntime.InferenceSession(str(path), options))
    with pytest.raises(Exception, match="kvshare.drop_in"):
        options.get_session_config_entry("kvshare.drop_in")


@with_ep  # older hosts do not load the opset
def test_session_options_replace_nothing_for_a_rewritten_export(tmp_path):
    """Its file does not import com.microsoft. If that domain's op were replaced, onnxruntime would find no QuickGelu."""
    kvshare.rewrite(DATA / "torch_phi3" / "model.onnx", tmp_path / "r.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "r.onnx"), kvshare.session_options(tmp_path / "r.onnx"))


@without_ep
def test_an_older_host_is_told_what_it_needs(tmp_path):
    for call in (kvshare.register, lambda: kvshare.InferenceSession(borrower(tmp_path / "m.onnx"))):
        with pytest.raises(kvshare.RefusedError, match="needs 1.24 or later, or kvshare.session_options"):
            call()


@with_ep
def test_registering_twice_is_registering_once():
    kvshare.register()
    kvshare.register()
    assert [d.ep_name for d in onnxruntime.get_ep_devices()].count(kvshare.get_ep_name()) == 1


@with_ep
@pytest.mark.parametrize("mode", ["fuse", "nodes"])
def test_an_unchanged_real_export_has_golden_logits_without_override(mode):
    case = DATA / "e2b35_mixed_bias_asis"
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = kvshare.InferenceSession(case / "model.onnx", options, kvshare_options={"mode": mode})
    assert max(golden_differences(session, case)) < 1e-4
    ours = [node.op_type for graph in session.get_provider_graph_assignment_info() if graph.ep_name == kvshare.get_ep_name()
            for node in graph.get_nodes()]
    assert (ours.count("GroupQueryAttention"), ours.count("Attention")) == (15, 20)


@with_ep
def test_a_rewritten_export_needs_no_other_registration(tmp_path):
    case = DATA / "mixed_bias_asis"
    kvshare.rewrite(case / "model.onnx", tmp_path / "r.onnx")
    assert max(golden_differences(kvshare.InferenceSession(tmp_path / "r.onnx"), case)) < 1e-4


@with_ep
def test_the_provider_takes_the_callers_providers_and_options(tmp_path):
    path = borrower(tmp_path / "m.onnx")
    for providers in (["CPUExecutionProvider"], onnxruntime.get_available_providers()):
        session = kvshare.InferenceSession(path, providers=providers)
        assert kvshare.get_ep_name() in session.get_providers()
        check(session)
    check(kvshare.InferenceSession(path.read_bytes()))
    reused = onnxruntime.SessionOptions()
    for _ in range(2):
        check(kvshare.InferenceSession(path, reused))
    with pytest.raises(Exception, match="fuse, nodes"):
        kvshare.InferenceSession(path, kvshare_options={"mode": "x"})


@with_ep
def test_options_that_session_options_cannot_take_any_more_are_refused(tmp_path):
    path = borrower(tmp_path / "m.onnx")
    reused = onnxruntime.SessionOptions()
    for _ in range(2):
        kvshare.InferenceSession(path, reused, kvshare_options={"mode": "off"})
    for other in ({}, {"mode": "fuse"}, {"mode": "nonsense"}):
        with pytest.raises(kvshare.InvalidInputError, match="with options {'mode': 'off'} already, and .*needs new SessionOptions"):
            kvshare.InferenceSession(path, reused, kvshare_options=other)


@with_ep
@pytest.mark.parametrize("place", [0, 1])
def test_another_devices_provider_is_never_dropped(tmp_path, monkeypatch, place):
    """onnxruntime's own class stands for a card that is not there: it says which providers it was asked for."""
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, providers, **__: providers)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    providers = [kvshare.get_ep_name(), "CPUExecutionProvider"]
    providers.insert(place, ("CUDAExecutionProvider", {"device_id": "0"}))
    with pytest.warns(UserWarning, match="kvshare stands aside: providers has CUDAExecutionProvider"):
        asked = kvshare.InferenceSession(borrower(tmp_path / "m.onnx"), providers=providers)
    assert asked == [("CUDAExecutionProvider", {"device_id": "0"}), "CPUExecutionProvider"]


@with_ep
def test_a_provider_that_this_onnxruntime_lacks_does_not_send_kvshare_away(tmp_path):
    session = kvshare.InferenceSession(borrower(tmp_path / "m.onnx"), providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert kvshare.get_ep_name() in session.get_providers()


@with_ep
def test_verify_runs_in_this_onnxruntime():
    case = DATA / "mixed_bias_causal0"
    found = kvshare.verify(case / "model.onnx", golden=case)
    assert found.equal and found.onnxruntime == onnxruntime.__version__ and found.steps[0].step == "prefill"
    wrong = kvshare.verify(DATA / "mixed_bias_asis" / "model.onnx", golden=DATA / "mixed_bias_asis")
    assert wrong.steps[0].difference < 1e-4
    assert wrong.equal == (ORT < (1, 28)) == (wrong.steps[1].difference < 1e-4)  # since 1.28 it reads that graph otherwise
    with pytest.raises(kvshare.InvalidInputError, match="needs one of golden and against"):
        kvshare.verify(case / "model.onnx")


@with_ep
def test_verify_has_harder_prompts_and_judges_codes(tmp_path):
    case = DATA / "mixed_bias_causal0" / "model.onnx"
    rewritten, small = tmp_path / "rewritten.onnx", tmp_path / "small.onnx"
    kvshare.rewrite(case, rewritten)
    found = kvshare.verify(rewritten, against=case, hard=True)
    assert found.equal and found.codes is None and found.notes == []
    assert {"long prefill", "ragged prefill"} <= {step.step for step in found.steps}
    with pytest.raises(kvshare.InvalidInputError, match="option 'hard' is for two models; needs option 'against'"):
        kvshare.verify(rewritten, golden=case.parent, hard=True)
    tokens = np.random.default_rng(5).integers(0, 160, (2, 60))
    kvshare.rewrite(case, small, kv_cache="int8", calibrate={"input_ids": tokens}, weights="small.data")
    found = kvshare.verify(small, against=case)
    assert found.equal and found.codes.right and found.codes.difference <= found.codes.tolerance
    assert all(cache.far == 0 and cache.share <= found.codes.rounding for cache in found.codes.caches)


@with_ep
@pytest.mark.parametrize("via", ["ep", "dropin"])
def test_doctor_counts_what_ran_here(via):
    found = kvshare.doctor(DATA / "mixed_bias_asis" / "model.onnx", via=via)
    assert (found.nodes_here, found.via, found.onnxruntime) == (10, via, onnxruntime.__version__)
    with pytest.raises(kvshare.InvalidInputError, match="option 'via' is 'x'; needs ep, ops or dropin"):
        kvshare.doctor(DATA / "mixed_bias_asis" / "model.onnx", via="x")


def test_doctor_finds_the_way_that_suits_this_onnxruntime(tmp_path):
    path = borrower(tmp_path / "m.onnx")
    model = onnx.load(path)  # with lengths that no invented input contradicts
    for name in ("seqlens_k", "total"):
        [given] = [i for i in model.graph.input if i.name == name]
        model.graph.input.remove(given)
        model.graph.initializer.append(numpy_helper.from_array(feeds()[name], name))
    for given in model.graph.input:
        if given.name.startswith("past"):
            given.type.tensor_type.shape.dim[2].dim_value = feeds()[given.name].shape[2]
    onnx.save(model, path)
    found = kvshare.doctor(path)
    assert (found.nodes_here, found.drop_in) == (2, "1") and found.entries == ({} if ORT >= (1, 24) else {"kvshare.drop_in": "1"})
    kvshare.rewrite(path, tmp_path / "r.onnx")
    found = kvshare.doctor(tmp_path / "r.onnx")
    assert (found.nodes_here, found.entries) == (2, {})


def test_what_onnxruntime_refuses_is_one_line(tmp_path):
    with pytest.raises(kvshare.KvshareError) as failure:
        kvshare.doctor(borrower(tmp_path / "m.onnx", "nobody"))
    assert "\n" not in str(failure.value)


def test_session_options_are_given_again(tmp_path):
    first, path = borrower(tmp_path / "m.onnx"), tmp_path / "r.onnx"
    kvshare.rewrite(first, path)
    options = kvshare.session_options(first)
    assert kvshare.session_options(first, options) is options
    for _ in range(2):
        check(onnxruntime.InferenceSession(str(first), kvshare.session_options(first, options)))
    with pytest.raises(kvshare.InvalidInputError, match="sess_options have kvshare's operators with .*'1'.* already, and .* needs new SessionOptions"):
        kvshare.session_options(path, options)
    with pytest.raises(kvshare.InvalidInputError, match="option 'causal_alignment' = None: needs str"):
        kvshare.session_options(first, causal_alignment=None)


@with_ep
def test_options_with_another_provider_are_told_to_have_none_of_kvshare(tmp_path):
    path = borrower(tmp_path / "m.onnx")
    kvshare.register()
    options = onnxruntime.SessionOptions()
    options.add_provider_for_devices([d for d in onnxruntime.get_ep_devices() if d.ep_name == "CPUExecutionProvider"][:1], {})
    with pytest.warns(UserWarning, match="kvshare stands aside: sess_options have providers already"):
        kvshare.InferenceSession(path, options)


@with_ep
@pytest.mark.parametrize("given, message", [
    ({"providers": ["CPUExecutionProvider"], "provider_options": []}, "provider_options has 0 entries; needs 1"),
    ({"providers": [("a",)]}, "providers has ('a',); needs a name, or a name and its options"),
    ({"kvshare_options": {"mode": 1}}, "option 'kvshare_options' has 1 for 'mode'; needs text for text"),
])
def test_providers_are_names_and_options(tmp_path, given, message):
    with pytest.raises(kvshare.InvalidInputError, match=re.escape(message)):
        kvshare.InferenceSession(borrower(tmp_path / "m.onnx"), **given)
