"""kvshare genai: what it does to genai_config.json, and what it leaves alone."""
import json
import os
import pathlib
import shutil
import subprocess

import onnx
import pytest
from onnx import helper

from conftest import BAD_INPUT, EQUAL, FAILED, REFUSED

NAME = "KvshareExecutionProvider"


def folder(path, decoder):
    path.mkdir()
    config = {"model": {"type": "gemma3_text", "decoder": decoder, "vocab_size": 8}, "search": {"max_length": 64}}
    (path / "genai_config.json").write_text(json.dumps(config))
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [])), path / "model.onnx")
    return path


def config(path):
    return json.loads((pathlib.Path(path) / "genai_config.json").read_text())


@pytest.mark.parametrize("session_options", [None, {}, {"log_id": "x", "provider_options": []}, {"provider_options": [{"cpu": {}}]}])
def test_the_provider_comes_first_and_the_rest_stays(kvshare, tmp_path, session_options):
    decoder = {"filename": "model.onnx", **({} if session_options is None else {"session_options": session_options})}
    model = folder(tmp_path / "m", decoder)
    before = config(model)
    done = kvshare("genai", model, "--option", "mode=nodes")
    assert done.returncode == EQUAL, done.stderr
    assert 'register_execution_provider_library("kvshare", "' in done.stdout and "libkvshare_ort.so" in done.stdout
    after = config(model)
    options = after["model"]["decoder"].pop("session_options")
    assert options.pop("provider_options") == [{NAME: {"mode": "nodes"}}, *(session_options or {}).get("provider_options", [])]
    assert options == {k: v for k, v in (session_options or {}).items() if k != "provider_options"}
    before["model"]["decoder"].pop("session_options", None)
    assert after == before


def test_undo_puts_back_the_first_state_to_the_byte(kvshare, tmp_path):
    model = folder(tmp_path / "m", {})
    first = (model / "genai_config.json").read_bytes()
    assert kvshare("genai", model).returncode == EQUAL
    assert kvshare("genai", model, "--option", "mode=off").returncode == EQUAL
    assert config(model)["model"]["decoder"]["session_options"]["provider_options"] == [{NAME: {"mode": "off"}}]
    assert kvshare("genai", model, "--undo").returncode == EQUAL
    assert (model / "genai_config.json").read_bytes() == first and sorted(os.listdir(model)) == ["genai_config.json", "model.onnx"]
    done = kvshare("genai", model, "--undo")
    assert (done.returncode, "is not there: nothing to undo" in done.stderr) == (BAD_INPUT, True)


def test_json_has_what_the_text_has(kvshare, tmp_path):
    model = folder(tmp_path / "m", {})
    done = json.loads(kvshare("genai", model, "--json").stdout)
    assert done["config"] == str(model / "genai_config.json") and done["backup"] == done["config"] + ".before-kvshare"
    library = pathlib.Path(os.environ["KVSHARE_BIN"]).resolve().parents[1] / "lib/libkvshare_ort.so"
    assert (len(done["changes"]), done["library"]) == (1, str(library))
    assert json.loads(kvshare("genai", model, "--undo", "--json").stdout)["library"] == ""


def test_a_second_call_changes_nothing(kvshare, tmp_path):
    model = folder(tmp_path / "m", {})
    assert kvshare("genai", model).returncode == EQUAL
    once = (model / "genai_config.json").read_bytes()
    done = kvshare("genai", model)
    assert (done.returncode, f"nothing to change: {model}/genai_config.json" in done.stdout, "written" in done.stdout) == (EQUAL, True, False)
    assert (model / "genai_config.json").read_bytes() == once


def test_a_copy_leaves_the_original_alone(kvshare, tmp_path):
    model = folder(tmp_path / "m", {})
    (model / "onnx").mkdir()
    (model / "onnx" / "weights.data").write_bytes(b"1234")
    first = (model / "genai_config.json").read_bytes()
    done = kvshare("genai", model, "-o", tmp_path / "out")
    assert done.returncode == EQUAL, done.stderr
    assert (model / "genai_config.json").read_bytes() == first and "genai_config.json.before-kvshare" not in os.listdir(model)
    assert (tmp_path / "out/onnx/weights.data").read_bytes() == b"1234"
    assert NAME in json.dumps(config(tmp_path / "out"))
    done = kvshare("genai", model, "-o", tmp_path / "out")
    assert (done.returncode, "holds files; needs a folder that is absent or empty" in done.stderr) == (BAD_INPUT, True)


def test_a_copy_of_links_has_files(kvshare, tmp_path):
    """A snapshot in Hugging Face's cache is links to files elsewhere."""
    blobs = folder(tmp_path / "blobs", {})
    model = tmp_path / "snapshots" / "main"
    (model / "onnx").mkdir(parents=True)
    for path in ("genai_config.json", "onnx/model.onnx"):
        (model / path).symlink_to(blobs / pathlib.Path(path).name)
    before = {path.name: path.read_bytes() for path in blobs.iterdir()}
    for where in (model, f"{model}/"):
        done = kvshare("genai", where, "-o", tmp_path / "out")
        assert done.returncode == EQUAL, done.stderr
        assert NAME in json.dumps(config(tmp_path / "out")) and not (tmp_path / "out/genai_config.json").is_symlink()
        assert (tmp_path / "out/onnx/model.onnx").read_bytes() == before["model.onnx"]
        assert {path.name: path.read_bytes() for path in blobs.iterdir()} == before
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("odd", ["folder", "absent", "loop", "pipe"])
def test_a_copy_refuses_what_is_no_file(kvshare, tmp_path, odd):
    model = folder(tmp_path / "m", {})
    if odd == "pipe":
        os.mkfifo(model / "odd")
    else:
        (model / "odd").symlink_to({"folder": tmp_path, "absent": "nowhere", "loop": "odd"}[odd])
    done = kvshare("genai", model, "-o", tmp_path / "out")
    message = f"'{model}/odd' is {'a link to a folder' if odd == 'folder' else 'no file, or a link to none'}; needs a folder of files to copy"
    assert (done.returncode, message in done.stderr) == (REFUSED, True), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_there", [False, True])
def test_a_copy_that_fails_leaves_nothing(kvshare, tmp_path, is_there):
    model = folder(tmp_path / "m", {})
    (model / "sub").mkdir()
    (model / "sub" / "a.data").write_bytes(b"1" * 4000)
    (model / "sub" / "b.data").write_bytes(b"1" * 400000)
    if is_there:
        (tmp_path / "out").mkdir()
    # A file that is too large is refused as a full disk is.
    limited = ["bash", "-c", 'trap "" XFSZ; ulimit -f 100; exec "$0" "$@"', os.environ["KVSHARE_BIN"]]
    done = subprocess.run([*limited, "genai", model, "-o", tmp_path / "out"], capture_output=True, text=True, check=False)
    assert (done.returncode, "cannot write" in done.stderr) == (FAILED, True), done.stderr
    assert [path.name for path in tmp_path.glob("out*")] == (["out"] if is_there else [])
    assert not is_there or not os.listdir(tmp_path / "out")


def test_every_stage_of_a_pipeline_gets_the_provider(kvshare, tmp_path):
    model = folder(tmp_path / "m", {"pipeline": [{"prompt": {"filename": "a"}, "generate": {"session_options": {}}}]})
    assert kvshare("genai", model).returncode == EQUAL
    stages = config(model)["model"]["decoder"]["pipeline"][0]
    assert all(stage["session_options"]["provider_options"] == [{NAME: {}}] for stage in stages.values())


def windowed(kvshare, path, case, decoder=None, slack=8):
    """A folder whose model has window-sized caches."""
    made = folder(path, {"filename": "model.onnx", **(decoder or {})})
    (path / "model.onnx").unlink()
    done = kvshare("rewrite", case.model("mixed_bias_causal0"), "-o", made / "model.onnx", "--to", "kvshare", f"--window-caches={slack}")
    assert done.returncode == EQUAL, done.stderr
    return made


@pytest.mark.parametrize("chunk_size, set_to", [(None, 9), (5, 5), (9, 9), (10, 9), (0, 9), ("many", 9)])
def test_window_sized_caches_are_told(kvshare, case, tmp_path, chunk_size, set_to):
    """The case has a window of 8 in its layers 0 to 3, and a full cache in layer 4."""
    model = windowed(kvshare, tmp_path / "m", case)
    before = config(model)
    if chunk_size is not None:
        before["search"]["chunk_size"] = chunk_size
        (model / "genai_config.json").write_text(json.dumps(before))
    done = kvshare("genai", model)
    assert done.returncode == EQUAL, done.stderr
    after = config(model)
    assert after["model"]["decoder"]["sliding_window"] == {
        "window_size": 8, "slide_key_value_cache": False, "slide_inputs": False, "layers": [0, 1, 2, 3], "cache_slack": 8}
    assert after["search"] == {**before["search"], "past_present_share_buffer": True, "chunk_size": set_to}
    assert "model.decoder.sliding_window is {" in done.stdout and "search.past_present_share_buffer is true" in done.stdout
    assert ("search.chunk_size is 9" in done.stdout) == (chunk_size != set_to)
    assert "nothing to change" in kvshare("genai", model).stdout
    assert kvshare("genai", model, "--undo").returncode == EQUAL
    assert config(model) == before


def test_names_that_number_no_cache_are_refused(kvshare, case, tmp_path):
    for names in ("past_key_values_%d_key", "past_key_values.key", "past_key_values.%d.keys"):
        model = windowed(kvshare, tmp_path / names.replace("%", ""), case, {"inputs": {"past_key_names": names}})
        done = kvshare("genai", model)
        message = f"has a window-sized cache in 'past_key_values.0.key', whose number '{names}' does not tell; needs"
        assert (done.returncode, message in done.stderr) == (REFUSED, True), done.stderr


def test_static_caches_are_no_windows(kvshare, tmp_path):
    """A cache of fixed size that the graph itself writes holds every token."""
    tensor = lambda name, shape, kind=onnx.TensorProto.FLOAT: helper.make_tensor_value_info(name, kind, shape)
    int64 = onnx.TensorProto.INT64
    nodes = [helper.make_node("TensorScatter", [f"{x}_cache", x, "at"], [f"all_{x}"], axis=2) for x in "kv"]
    nodes.append(helper.make_node("Attention", ["q", "all_k", "all_v", "", "", "", "lengths"], ["y"], is_causal=1))
    inputs = [tensor("q", [1, 4, 1, 8]), tensor("lengths", [1], int64), tensor("at", [1], int64)]
    inputs += [tensor(x, [1, 2, 1, 8]) for x in "kv"] + [tensor(f"{x}_cache", [1, 2, 32, 8]) for x in "kv"]
    model = folder(tmp_path / "m", {"filename": "model.onnx"})
    graph = helper.make_graph(nodes, "g", inputs, [tensor(name, None) for name in ("y", "all_k", "all_v")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)]), model / "model.onnx")
    assert json.loads(kvshare("inspect", model / "model.onnx", "--json").stdout)["layers"][0]["cache_rows"] == 32
    assert kvshare("genai", model).returncode == EQUAL
    assert "sliding_window" not in config(model)["model"]["decoder"]


def test_caches_without_a_row_to_spare_are_refused(kvshare, case, tmp_path):
    done = kvshare("genai", windowed(kvshare, tmp_path / "m", case, slack=0))
    assert (done.returncode, "the window-sized caches hold no row beside the window, which onnxruntime-genai reads as its own choice "
            "of rows; needs a rewrite with " in done.stderr, "--window-caches of at least 1" in done.stderr) == (REFUSED, True, True), done.stderr


def test_a_search_that_is_no_object_is_named(kvshare, case, tmp_path):
    model = windowed(kvshare, tmp_path / "m", case)
    (model / "genai_config.json").write_text(json.dumps({**config(model), "search": []}))
    done = kvshare("genai", model)
    assert (done.returncode, "genai_config.json: 'search' is no object" in done.stderr) == (BAD_INPUT, True), done.stderr


def test_windows_of_two_sizes_are_refused(kvshare, case, tmp_path):
    model = windowed(kvshare, tmp_path / "m", case)
    other = onnx.load(model / "model.onnx", load_external_data=False)
    own = [node for node in other.graph.node if node.op_type == "GroupQueryAttention" and node.input[3]]
    [rows] = [attribute for attribute in own[1].attribute if attribute.name == "window_cache_rows"]
    rows.i += 1
    (model / "model.onnx").write_bytes(other.SerializeToString())
    done = kvshare("genai", model)
    assert (done.returncode, "has a cache of 17 rows for a window of 8, and earlier ones have 16 for 8; onnxruntime-genai has one "
            "size for all" in done.stderr) == (REFUSED, True), done.stderr


BAD = {
    "no_model": (lambda m: (m / "genai_config.json").write_text('{"model": {"decoder": {"filename": "x.onnx"}}}'), "no such file", BAD_INPUT),
    "no_config": (lambda m: (m / "genai_config.json").unlink(), "cannot be read; needs a folder that onnxruntime-genai's builder wrote", BAD_INPUT),
    "no_json": (lambda m: (m / "genai_config.json").write_text("{"), "is no JSON object; needs onnxruntime-genai's format", BAD_INPUT),
    "no_decoder": (lambda m: (m / "genai_config.json").write_text('{"model": {}}'), "has no 'model.decoder'", BAD_INPUT),
    "options_list": (lambda m: (m / "genai_config.json").write_text('{"model": {"decoder": {"session_options": []}}}'),
                     "'model.decoder.session_options' is no object", BAD_INPUT),
    "providers_object": (lambda m: (m / "genai_config.json").write_text(
        '{"model": {"decoder": {"session_options": {"provider_options": {}}}}}'), "provider_options' is no list", BAD_INPUT),
    "provider_name": (lambda m: (m / "genai_config.json").write_text(
        '{"model": {"decoder": {"session_options": {"provider_options": ["cuda"]}}}}'), "is no object of one provider", BAD_INPUT),
    "cuda": (lambda m: (m / "genai_config.json").write_text(
        '{"model": {"decoder": {"session_options": {"provider_options": [{"cuda": {}}]}}}}'), "runs on provider 'cuda'; KvshareExecutionProvider is for the CPU and would stand aside", REFUSED),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_named_and_left_alone(kvshare, tmp_path, name):
    model = folder(tmp_path / "m", {})
    spoil, message, code = BAD[name]
    spoil(model)
    before = {f: (model / f).read_bytes() for f in os.listdir(model)}
    done = kvshare("genai", model)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert {f: (model / f).read_bytes() for f in os.listdir(model)} == before


@pytest.mark.parametrize("out", ["sub", "sub/deeper", ".", "empty"])
def test_a_folder_is_not_copied_into_itself(kvshare, tmp_path, out):
    model = folder(tmp_path / "m", {})
    (model / "empty").mkdir()
    before = sorted(model.rglob("*"))
    done = kvshare("genai", model, "-o", model / out)
    assert (done.returncode, "whose copy it would be; needs a folder outside" in done.stderr) == (BAD_INPUT, True), done.stderr
    assert sorted(model.rglob("*")) == before


@pytest.mark.parametrize("levels, deep", [(90, False), (200, True), (1_000_000, True)])
def test_a_configuration_without_end_is_refused(kvshare, tmp_path, levels, deep):
    model = folder(tmp_path / "m", {})
    text = (model / "genai_config.json").read_text()
    (model / "genai_config.json").write_text(text.replace('"vocab_size"', f'"x": {"[" * levels}{"]" * levels}, "vocab_size"'))
    done = kvshare("genai", model)
    assert (done.returncode, "nests deeper than 100 levels" in done.stderr) == ((BAD_INPUT, True) if deep else (EQUAL, False)), done.stderr


WRONG_OPTIONS = {
    "speed=4": "kvshare: KvshareExecutionProvider: 'speed' is none of its options; have mode, causal_alignment",
    "Mode=fuse": "'Mode' is none of its options; have mode, causal_alignment",
    "mode=fast": "its option mode is 'fast'; needs fuse, nodes or off",
    "mode=": "its option mode is ''; needs fuse, nodes or off",
    "mode=nodes ": "its option mode is 'nodes '; needs fuse, nodes or off",
    "causal_alignment=left": "its option causal_alignment is 'left'; needs auto, spec or lower_right",
    "mode": "needs KEY=VALUE, got 'mode'",
    "mode=\udcff": "needs fuse, nodes or off",  # a byte that is no UTF-8, as Python passes it on
    "\udcc3=fuse": "have mode, causal_alignment",
}


@pytest.mark.parametrize("option", WRONG_OPTIONS)
@pytest.mark.parametrize("out", [[], ["-o", "copy"]], ids=["in_place", "copy"])
def test_an_option_that_the_provider_does_not_take_is_refused_before_anything_is_written(kvshare, tmp_path, monkeypatch, option, out):
    monkeypatch.chdir(tmp_path)
    model = folder(tmp_path / "m", {})
    before = (model / "genai_config.json").read_bytes()
    other = "mode=off" if option.startswith("causal") else "causal_alignment=auto"
    done = kvshare("genai", model, *out, "--option", other, "--option", option)
    assert (done.returncode, WRONG_OPTIONS[option] in done.stderr) == (BAD_INPUT, True), done.stderr
    assert (os.listdir(tmp_path), sorted(os.listdir(model))) == (["m"], ["genai_config.json", "model.onnx"])
    assert (model / "genai_config.json").read_bytes() == before


def test_an_option_has_one_value(kvshare, tmp_path):
    model = folder(tmp_path / "m", {})
    done = kvshare("genai", model, "--option", "mode=nodes", "--option", "mode=off")
    assert (done.returncode, "--option: 'mode' is given twice" in done.stderr) == (BAD_INPUT, True), done.stderr
    assert sorted(os.listdir(model)) == ["genai_config.json", "model.onnx"]


def test_every_option_that_the_provider_takes_is_written(kvshare, tmp_path):
    model = folder(tmp_path / "m", {})
    for name, values in {"mode": ["fuse", "nodes", "off"], "causal_alignment": ["auto", "spec", "lower_right"]}.items():
        for value in values:
            done = kvshare("genai", model, "--option", f"{name}={value}")
            assert done.returncode == EQUAL, done.stderr
            [provider] = config(model)["model"]["decoder"]["session_options"]["provider_options"]
            assert provider == {NAME: {name: value}}
