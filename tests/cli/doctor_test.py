"""kvshare doctor and verify with kvshare's own library."""
import json
import pathlib
import shutil

import onnx
import pytest

from conftest import BAD_INPUT, DIFFERS, EQUAL, NO_ORT, REFUSED


@pytest.fixture
def rewritten(kvshare, case, tmp_path):
    out = tmp_path / "shared.onnx"
    done = kvshare("rewrite", case.model("mixed_bias_asis"), "-o", out, "--to", "kvshare")
    assert done.returncode == EQUAL, done.stderr
    return out


def test_a_rewritten_model_is_right_and_registers_the_library_by_itself(kvshare, case, rewritten):
    done = kvshare("verify", rewritten, "--golden", case.folder("mixed_bias_asis"))
    assert done.returncode == EQUAL, done.stdout + done.stderr


def test_drop_in_equals_the_plain_model(kvshare, case):
    model = case.model("head_shared_gqa")
    done = kvshare("verify", model, "--against", model, "--entry", "kvshare.drop_in=1")
    assert done.returncode == EQUAL, done.stdout + done.stderr


def test_doctor_counts_what_ran_in_kvshare(kvshare, rewritten):
    done = kvshare("doctor", rewritten, "--via", "ops")
    assert done.returncode == EQUAL, done.stdout + done.stderr
    assert "10 nodes ran in kvshare" in done.stdout
    assert "kvshare::GroupQueryAttention" in done.stdout
    for fact in ("ONNX Runtime", "libonnxruntime.so", "libkvshare_ort.so", "before the library is registered"):
        assert fact in done.stdout


def test_doctor_says_what_to_do_where_nothing_runs_in_kvshare(kvshare, case):
    done = kvshare("doctor", case.model("mixed_bias_asis"), "--via", "ops")
    assert done.returncode == DIFFERS
    assert "kvshare rewrite" in done.stdout and "kvshare.drop_in=1" in done.stdout


def test_doctor_takes_the_execution_provider_by_default(kvshare, case, rewritten):
    for model in (case.model("mixed_bias_asis"), rewritten):
        report = json.loads(kvshare("doctor", model, "--json").stdout)
        assert (report["via"], report["nodes_here"]) == ("ep", 10)


def test_doctor_sets_entries_before_it_registers(kvshare, case):
    done = kvshare("doctor", case.model("mixed_bias_asis"), "--entry", "kvshare.drop_in=gqa")
    assert done.returncode == EQUAL, done.stdout + done.stderr
    assert "com.microsoft::GroupQueryAttention" in done.stdout
    assert "ai.onnx::Attention" not in done.stdout


def test_a_node_name_need_be_no_utf8(kvshare, case, tmp_path):
    source = pathlib.Path(case.model("head_shared_gqa"))
    shutil.copy(source.with_name("model.onnx.data"), tmp_path)
    name = next(n.name for n in onnx.load(source, load_external_data=False).graph.node if n.op_type == "GroupQueryAttention").encode()
    (tmp_path / "named.onnx").write_bytes(source.read_bytes().replace(name, b"\xff" + name[1:]))
    listed = kvshare("inspect", tmp_path / "named.onnx", "--json")
    assert json.loads(listed.stdout)["layers"][0]["node"] == "\ufffd" + name[1:].decode()
    done = kvshare("doctor", tmp_path / "named.onnx", "--entry", "kvshare.drop_in=1")
    assert done.returncode == EQUAL, done.stdout + done.stderr


def test_doctor_finds_a_misspelt_attribute(kvshare, case, tmp_path):
    # A copy of the weights: onnx refuses files with several links, and a rewrite of the case elsewhere makes such.
    source = pathlib.Path(case.model("head_shared_gqa"))
    shutil.copy(source.with_name("model.onnx.data"), tmp_path)
    model = onnx.load(source, load_external_data=False)
    node = next(n for n in model.graph.node if n.op_type == "GroupQueryAttention")
    node.attribute.append(onnx.helper.make_attribute("local_windows_size", 8))
    onnx.save(model, tmp_path / "misspelt.onnx")
    done = kvshare("doctor", tmp_path / "misspelt.onnx", "--entry", "kvshare.drop_in=1")
    assert "local_windows_size" in done.stdout, done.stdout + done.stderr


def test_doctor_has_verifys_exit_codes(kvshare, case, tmp_path):
    model = case.model("head_shared_gqa")
    assert kvshare("doctor", tmp_path / "no.onnx").returncode == BAD_INPUT
    assert kvshare("doctor", model, "--ort", "no/such/file").returncode == NO_ORT
    assert kvshare("doctor", model, "--lib", "no/such/file").returncode == REFUSED
    assert kvshare("doctor", model, "--entry", "kvshare.drop_in=maybe").returncode == REFUSED


@pytest.mark.parametrize("name", ["head_shared_gqa", "mixed_bias_causal0", "default_attention"])
def test_the_execution_provider_serves_unchanged_models(kvshare, case, name):
    """Every attention node, without an entry; and the logits are the golden ones."""
    nodes = len(json.loads(kvshare("inspect", case.model(name), "--json").stdout)["layers"])
    done = kvshare("doctor", case.model(name), "--via", "ep", "--json")
    assert done.returncode == EQUAL, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert (report["via"], report["nodes_here"], report["entries"]) == ("ep", nodes, {})
    assert all(node["ran"] == 2 for node in report["nodes"])
    done = kvshare("verify", case.model(name), "--golden", case.folder(name), "--via", "ep")
    assert done.returncode == EQUAL, done.stdout + done.stderr
    # The model on both sides: two sessions in one process, and the second without the provider.
    done = kvshare("verify", case.model(name), "--against", case.model(name), "--via", "ep")
    assert done.returncode == EQUAL, done.stdout + done.stderr


def test_dropin_replaces_nothing_for_a_rewritten_model(kvshare, case, tmp_path):
    """The file does not import com.microsoft. If its ops were replaced, ONNX Runtime would find no QuickGelu."""
    done = kvshare("rewrite", case.model("torch_phi3"), "-o", tmp_path / "out.onnx", "--to", "kvshare")
    assert done.returncode == EQUAL, done.stderr
    done = kvshare("doctor", tmp_path / "out.onnx", "--via", "dropin", "--json")
    assert done.returncode == EQUAL, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert (report["via"], report["entries"], report["drop_in"]) == ("dropin", {}, "") and report["nodes_here"] > 0


def test_a_library_without_the_execution_provider_is_refused(kvshare, case):
    done = kvshare("verify", case.model("head_shared_gqa"), "--golden", case.folder("head_shared_gqa"), "--via", "ep", "--lib",
                   shutil.which("true"))
    assert done.returncode == REFUSED, done.stderr


def test_dropin_chooses_the_entry_that_suits_the_model(kvshare, case):
    report = json.loads(kvshare("doctor", case.model("mixed_bias_asis"), "--via", "dropin", "--json").stdout)
    assert (report["via"], report["entries"]) == ("dropin", {"kvshare.drop_in": "1"}) and report["nodes_here"] == 10
    report = json.loads(kvshare("doctor", case.model("default_attention"), "--via", "dropin", "--json").stdout)
    assert report["entries"] == {"kvshare.drop_in": "attention"} and report["nodes_here"] > 0
    done = kvshare("doctor", case.model("mixed_bias_asis"), "--via", "dropin", "--entry", "kvshare.drop_in=gqa")
    assert (done.returncode, "--via dropin sets session entry kvshare.drop_in itself, and it is given as 'gqa'; needs one of the two"
            in done.stderr) == (BAD_INPUT, True), done.stderr
    report = json.loads(kvshare("doctor", case.model("mixed_bias_asis"), "--via", "ops", "--json").stdout)
    assert (report["via"], report["nodes_here"], report["entries"]) == ("ops", 0, {})
