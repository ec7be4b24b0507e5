"""Weights beside a model: which links are followed, and what becomes of the weights of a rewritten model."""

import os
import pathlib
import shutil
import subprocess

import cases
import onnx
import onnxruntime as ort
import pytest
from files import contents, refuse, with_weight

WEIGHTS = bytes(range(16))


def loads(model):
    """ONNX Runtime's own verdict on a model's external data."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its Fail is no class of Python's
        assert "External data path" in str(error), error
        return False
    return True


def write(path, location="w.bin"):
    model = with_weight(location)
    model.ir_version = 10
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def link(path, to):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)
    return path


def hub(root, location="w.bin"):
    """A repository in Hugging Face's cache: snapshots/<revision>/onnx holds links into blobs. Returns the model's."""
    write(root / "blobs" / "aa", location)
    (root / "blobs" / "bb").write_bytes(WEIGHTS)
    (root / "secret.bin").write_bytes(WEIGHTS)
    return link(root / "snapshots" / "rev" / "onnx" / "model.onnx", "../../../blobs/aa")


def of_the_hub(root):
    model = hub(root)
    link(model.parent / "w.bin", "../../../blobs/bb")
    return model


def nested_in_the_hub(root):
    model = hub(root, "data/0/w.bin")
    link(model.parent / "data" / "0" / "w.bin", "../../../../../blobs/bb")
    return model


def by_absolute_links(root):
    model = hub(root)
    model.unlink()
    link(model, root / "blobs" / "aa")
    link(model.parent / "w.bin", root / "blobs" / "bb")
    return model


def by_a_chain_of_links(root):
    model = of_the_hub(root)
    return link(root / "models" / "mine.onnx", model), link(root / "models" / "w.bin", model.parent / "w.bin")


def by_a_linked_folder(root):
    model = of_the_hub(root)
    return link(root / "models", model.parent.relative_to(root)) / model.name


def model_linked_weights_here(root):
    model = hub(root)
    (model.parent / "w.bin").write_bytes(WEIGHTS)
    return model


def below_the_blobs(root):
    model = hub(root)
    (root / "blobs" / "deep").mkdir()
    (root / "blobs" / "deep" / "w").write_bytes(WEIGHTS)
    link(model.parent / "w.bin", "../../../blobs/deep/w")
    return model


def through_a_linked_folder_of_blobs(root):
    model = hub(root, "data/bb")
    link(model.parent / "data", "../../../blobs")
    return model


def beside_the_blobs(root):
    model = hub(root)
    link(model.parent / "w.bin", "../../../secret.bin")
    return model


def in_a_folder_whose_name_starts_alike(root):
    model = hub(root)
    (root / "blobs2").mkdir()
    (root / "blobs2" / "bb").write_bytes(WEIGHTS)
    link(model.parent / "w.bin", "../../../blobs2/bb")
    return model


def out_of_the_blobs_by_a_second_link(root):
    model = hub(root)
    link(root / "blobs" / "cc", "../secret.bin")
    link(model.parent / "w.bin", "../../../blobs/cc")
    return model


def only_the_weights_are_links(root):
    model = of_the_hub(root)
    model.unlink()
    return write(model)


FOLLOWED = [of_the_hub, nested_in_the_hub, by_absolute_links, by_a_chain_of_links, by_a_linked_folder, model_linked_weights_here,
            below_the_blobs, through_a_linked_folder_of_blobs]
LEAVING = [beside_the_blobs, in_a_folder_whose_name_starts_alike, out_of_the_blobs_by_a_second_link, only_the_weights_are_links]


def model_of(layout, root):
    made = layout(root)
    return made[0] if isinstance(made, tuple) else made


@pytest.mark.parametrize("layout", FOLLOWED, ids=lambda layout: layout.__name__)
def test_weights_in_the_models_folder_or_beside_the_file_it_links_to_are_read(kvshare, tmp_path, layout):
    model = model_of(layout, tmp_path)
    assert loads(model), "a layout that ONNX Runtime takes"
    assert cases.inspect(kvshare, model)["nodes"] == 1
    out = tmp_path / "out"
    out.mkdir()
    assert "no attention layer" in cases.rewrite(kvshare, model, out / "out.onnx", "--to", "ort")
    location = onnx.load(str(model), load_external_data=False).graph.initializer[0].external_data[0].value
    assert (out / location).read_bytes() == WEIGHTS and not (out / location).is_symlink()
    assert loads(out / "out.onnx")
    assert (tmp_path / "blobs" / "bb").read_bytes() == WEIGHTS
    done = cases.run(kvshare, "doctor", model)
    assert "external data" not in done.stderr and "random inputs" in done.stdout, done.stderr


@pytest.mark.parametrize("layout", LEAVING, ids=lambda layout: layout.__name__)
def test_weights_that_lie_anywhere_else_are_refused(kvshare, tmp_path, layout):
    model = model_of(layout, tmp_path)
    assert not loads(model), "a layout that ONNX Runtime refuses"
    refuse(kvshare, model, "external data 'w.bin' is a link that leaves the model's folder")
    done = cases.run(kvshare, "doctor", model)
    assert done.returncode == 2 and "is a link that leaves the model's folder" in done.stderr


def test_a_link_to_a_model_does_not_bring_the_weights_beside_its_file(kvshare, tmp_path):
    """They are looked for beside the link, as ONNX Runtime does."""
    model = hub(tmp_path)
    assert not loads(model)
    refuse(kvshare, model, "external data 'w.bin' cannot be opened: No such file")


@pytest.fixture
def decoder(tmp_path):
    """A folder with a real model and its weights."""
    shutil.copytree(cases.DATA / "mixed_bias_asis", tmp_path / "in")
    return tmp_path / "in" / "model.onnx"


def folder(path):
    path.mkdir()
    return path


def refused(kvshare, *arguments):
    """Exit code 3 and one line, which is returned."""
    done = cases.run(kvshare, "rewrite", *arguments)
    assert done.returncode == 3 and len(done.stderr.splitlines()) == 1, (done.returncode, done.stderr)
    return done.stderr


def locations(model):
    return {entry.value for tensor in cases.load(model).graph.initializer for entry in tensor.external_data if entry.key == "location"}


def test_weights_in_another_folder_are_a_copy_of_their_own(kvshare, decoder, tmp_path):
    before = contents(decoder.parent)
    out = folder(tmp_path / "out") / "out.onnx"
    cases.rewrite(kvshare, decoder, out, "--to", "ort")
    copy = out.parent / "model.onnx.data"
    assert copy.read_bytes() == before["model.onnx.data"]
    assert os.stat(copy).st_nlink == os.stat(decoder.parent / "model.onnx.data").st_nlink == 1
    for model in (decoder, out):
        onnx.load(str(model))  # it refuses weights with several links
    with open(copy, "r+b") as file:
        file.write(b"changed")
    assert contents(decoder.parent) == before


@pytest.mark.parametrize("out", ["out.onnx", "./out.onnx", "sub/out.onnx", "sub/../out.onnx"])
@pytest.mark.parametrize("options", [[], ["--weights", "w/out.data"], ["--link-weights"]], ids=lambda options: "".join(options[:1]))
def test_an_output_may_be_named_from_the_folder_where_one_stands(kvshare, decoder, tmp_path, out, options):
    here = folder(tmp_path / "here")
    folder(here / "sub")
    done = subprocess.run([str(kvshare), "rewrite", "../in/model.onnx", "-o", out, "--to", "ort", *options], cwd=here, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    (location,) = locations(here / out)
    assert ((here / out).parent / location).read_bytes() == (decoder.parent / "model.onnx.data").read_bytes()


def test_weights_are_linked_on_request(kvshare, decoder, tmp_path):
    out = folder(tmp_path / "out") / "out.onnx"
    cases.rewrite(kvshare, decoder, out, "--to", "ort", "--link-weights")
    assert os.path.samefile(out.parent / "model.onnx.data", decoder.parent / "model.onnx.data")


def test_a_link_that_cannot_be_is_no_copy(kvshare, decoder):
    import tempfile

    if os.stat("/dev/shm").st_dev == os.stat(decoder).st_dev:
        pytest.skip("/dev/shm is not a file system of its own")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as shm:
        done = cases.run(kvshare, "rewrite", decoder, "-o", pathlib.Path(shm) / "out.onnx", "--to", "ort", "--link-weights")
        assert done.returncode == 5 and f"cannot link '{shm}/model.onnx.data': Invalid cross-device link; copy it" in done.stderr
        assert not os.listdir(shm)


def test_weights_that_are_there_already_are_taken(kvshare, decoder, tmp_path):
    out = folder(tmp_path / "out")
    shutil.copy(decoder.parent / "model.onnx.data", out)
    def written():
        """What reading the file leaves as it is."""
        now = os.stat(out / "model.onnx.data")
        return now.st_ino, now.st_size, now.st_mtime_ns

    before = written()
    cases.rewrite(kvshare, decoder, out / "out.onnx", "--to", "ort")
    assert written() == before


def of_another(data):
    return b"another model's weights"


def with_another_last_byte(data):
    return data[:-1] + bytes([data[-1] ^ 1])


def cut_short(data):
    return data[:-1]


@pytest.mark.parametrize("other", [of_another, with_another_last_byte, cut_short], ids=lambda other: other.__name__)
def test_anothers_weights_are_never_overwritten(kvshare, decoder, tmp_path, other):
    out = folder(tmp_path / "out")
    taken = other((decoder.parent / "model.onnx.data").read_bytes())
    (out / "model.onnx.data").write_bytes(taken)
    before = contents(out)
    message = refused(kvshare, decoder, "-o", out / "out.onnx", "--to", "ort")
    assert f"'{out}/model.onnx.data' exists and is not the model's external data" in message
    assert "give the weights a name of their own (--weights)" in message
    assert contents(out) == before
    cases.rewrite(kvshare, decoder, out / "out.onnx", "--to", "ort", "--weights", "out.onnx.data")
    assert (out / "model.onnx.data").read_bytes() == taken
    assert locations(out / "out.onnx") == {"out.onnx.data"}
    wanted = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(str(decoder)).graph.initializer}
    for tensor in onnx.load(str(out / "out.onnx")).graph.initializer:
        if tensor.name in wanted:
            assert (onnx.numpy_helper.to_array(tensor) == wanted[tensor.name]).all(), tensor.name


def test_several_files_of_weights_keep_their_names_in_a_folder_of_the_name_given(kvshare, tmp_path):
    model = onnx.ModelProto()
    tensors = []
    for i, name in enumerate(("w0.bin", "sub/w1.bin")):
        model = with_weight(name)
        tensors.append(model.graph.initializer[0])
        tensors[-1].name = f"w{i}"
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes([i]) * 16)
    model.graph.node[0].op_type = "Sum"
    model.graph.node[0].input[:] = ["x", "w0", "w1"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    model.ir_version = 10
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    for out in (tmp_path / "out.onnx", folder(tmp_path / "other") / "out.onnx"):
        cases.rewrite(kvshare, tmp_path / "model.onnx", out, "--to", "ort", "--weights", "mine")
        assert locations(out) == {"mine/w0.bin", "mine/sub/w1.bin"}
        assert (out.parent / "mine" / "sub" / "w1.bin").read_bytes() == bytes([1]) * 16
        assert loads(out)
    (tmp_path / "third" / "sub").mkdir(parents=True)
    (tmp_path / "third" / "sub" / "w1.bin").write_bytes(b"another's")
    assert "exists and is not" in refused(kvshare, tmp_path / "model.onnx", "-o", tmp_path / "third" / "out.onnx", "--to", "ort")
    assert not (tmp_path / "third" / "w0.bin").exists()  # nothing is written where one is in the way


@pytest.mark.parametrize("name", ["/tmp/w", "../w", "sub/../../w", "sub/", ".", "sub/."])
def test_a_name_for_weights_stays_in_the_outputs_folder(kvshare, decoder, tmp_path, name):
    done = cases.run(kvshare, "rewrite", decoder, "-o", folder(tmp_path / "out") / "out.onnx", "--to", "ort", "--weights", name)
    assert done.returncode == 2 and f"--weights {name} names no file inside the output's folder" in done.stderr
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["out.onnx", "./out.onnx"])
def test_weights_never_have_the_outputs_name(kvshare, decoder, tmp_path, name):
    message = refused(kvshare, decoder, "-o", folder(tmp_path / "out") / "out.onnx", "--to", "ort", "--weights", name)
    assert "the model's external data has that name" in message and not list((tmp_path / "out").iterdir())


def test_a_model_of_the_hub_is_not_written_beside_links_that_it_could_not_load(kvshare, tmp_path):
    """ONNX Runtime follows them for a model that is such a link itself."""
    model = of_the_hub(tmp_path)
    out = model.parent / "out.onnx"
    for name in (out, model):
        message = refused(kvshare, model, "-o", name, "--to", "ort")
        assert f"'{model.parent}/w.bin' is a link that leaves its folder" in message and "(--weights)" in message
    assert model.is_symlink() and not out.exists()
    cases.rewrite(kvshare, model, out, "--to", "ort", "--weights", "out.bin")
    assert loads(out) and (model.parent / "out.bin").read_bytes() == WEIGHTS
    cases.rewrite(kvshare, model, model, "--to", "ort", "--weights", "out.bin")
    assert loads(model) and not model.is_symlink()
    assert cases.load(tmp_path / "blobs" / "aa").graph.initializer[0].external_data[0].value == "w.bin"


def test_weights_are_not_written_through_a_link_out_of_the_outputs_folder(kvshare, tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "w.bin").write_bytes(WEIGHTS)
    model = write(tmp_path / "in" / "model.onnx", "sub/w.bin")
    elsewhere = folder(tmp_path / "elsewhere")
    link(folder(tmp_path / "out") / "sub", elsewhere)
    assert "is a link that leaves its folder" in refused(kvshare, model, "-o", tmp_path / "out" / "out.onnx", "--to", "ort")
    assert not list(elsewhere.iterdir())


def on_a_terminal(command):
    """What `command` prints on stderr where that is a terminal."""
    import pty
    import subprocess

    ours, theirs = pty.openpty()
    done = subprocess.run([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=theirs, check=False)
    os.close(theirs)
    with os.fdopen(ours, "rb", closefd=True) as terminal:
        text = b""
        try:
            while chunk := terminal.read1(65536):
                text += chunk
        except OSError:  # EIO is a terminal's end of file
            pass
    return done.returncode, text.decode()


def test_a_copy_shows_how_far_it_is_on_a_terminal_only(kvshare, decoder, tmp_path):
    command = [kvshare, "rewrite", decoder, "--to", "ort", "-o"]
    code, text = on_a_terminal([*command, folder(tmp_path / "out") / "out.onnx"])
    assert code == 0
    # Where the file system shares blocks there is nothing to show.
    assert text == "" or (text.startswith("\rcopying weights [") and text.endswith("\r\x1b[K")), repr(text)
    done = cases.run(*command, folder(tmp_path / "other") / "out.onnx")
    assert done.stderr == ""


def test_a_model_that_is_replaced_hands_its_permissions_on(kvshare, decoder):
    decoder.chmod(0o640)
    cases.rewrite(kvshare, decoder, decoder, "--to", "ort")
    assert decoder.stat().st_mode & 0o7777 == 0o640
