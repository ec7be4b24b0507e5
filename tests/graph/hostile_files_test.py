"""Files that are malformed or mean harm, disks that fail, and outputs that are complete or absent."""

import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import cases
import onnx
import pytest
from files import contents, node, refuse, tiny, with_weight
from onnx import TensorProto, helper

ORIGINAL = cases.DATA / "mixed_bias_asis" / "model.onnx"


def good():
    return cases.DATA / "mixed_bias_asis"


def nested(depth):
    """Subgraphs in subgraphs, as bytes: Python's own parser refuses to build them."""

    def field(number, content):
        size, length = len(content), b""
        while size >= 128:
            length += bytes([size & 127 | 128])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))  # graph.node.attribute.g
    return field(7, graph)


MALFORMED = {
    "empty": (b"", "not an ONNX model (it has no graph)"),
    "no opset": (onnx.ModelProto(graph=tiny([node("Neg", ["x"], ["y"])]).graph), "not an ONNX model (it imports no operator set)"),
    "text": (b"this is not a model\n" * 40, "not an ONNX model (malformed, cut short or nested too deep)"),
    "zeros": (bytes(4096), "not an ONNX model"),
    "cut": (ORIGINAL.read_bytes()[:100_000], "not an ONNX model"),
    "cycle": (tiny([node("Add", ["x", "b"], ["a"]), node("Neg", ["a"], ["b"]), node("Neg", ["b"], ["y"])]), "cycle"),
    "self": (tiny([node("Add", ["x", "y"], ["y"])]), "cycle"),
    "twice": (tiny([node("Neg", ["x"], ["y"]), node("Abs", ["x"], ["y"])]), "output 'y' has another producer"),
    "shadowed input": (tiny([node("Neg", ["x"], ["x"])], outputs=["x"]), "output 'x' has another producer"),
    "unknown input": (tiny([node("Add", ["x", "z"], ["y"])]), "input 'z' is produced by no node"),
    "unknown output": (tiny([node("Neg", ["x"], ["z"])]), "graph output 'y' is produced by no node"),
    "input twice": (tiny([node("Neg", ["x"], ["y"])], inputs=["x", "x"]), "'x' is declared twice"),
    "no import": (tiny([helper.make_node("Neg", ["x"], ["y"], domain="nobody")]), "domain 'nobody' is not imported"),
    "deep": (nested(200), "nested too deep"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_models_are_one_line_and_exit_code_2(kvshare, tmp_path, name):
    content, text = MALFORMED[name]
    model = tmp_path / "model.onnx"
    model.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    refuse(kvshare, model, text)


def test_missing_models_and_folders_are_named(kvshare, tmp_path):
    result = cases.run(kvshare, "inspect", tmp_path / "absent.onnx")
    assert (result.returncode, "no such file" in result.stderr) == (2, True)
    result = cases.run(kvshare, "inspect", tmp_path)
    assert (result.returncode, "not a regular file" in result.stderr) == (2, True)
    result = cases.run(kvshare, "rewrite", good() / "model.onnx", "-o", tmp_path / "no" / "model.onnx", "--to", "ort")
    assert (result.returncode, "folder does not exist" in result.stderr) == (2, True)
    result = cases.run(kvshare, "rewrite", good() / "model.onnx", "-o", tmp_path, "--to", "ort")
    assert (result.returncode, f"'{tmp_path}': is a folder" in result.stderr) == (2, True)
    result = cases.run(kvshare, "rewrite", good() / "model.onnx", "-o", "/proc/out.onnx", "--to", "ort")  # nobody may
    assert (result.returncode, "cannot create a file for '/proc/" in result.stderr) == (5, True)


def test_a_file_shorter_than_it_says_is_not_read(kvshare):
    file = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not file.exists():
        pytest.skip("no such file here")
    result = cases.run(kvshare, "inspect", file)
    assert (result.returncode, f"'{file}': cannot be read" in result.stderr) == (2, True)


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_never_crash(kvshare, tmp_path, seed):
    import random

    chance = random.Random(seed)
    content = bytearray(ORIGINAL.read_bytes())
    for _ in range(chance.choice([1, 3, 30])):
        content[chance.randrange(len(content))] = chance.randrange(256)
    (tmp_path / "model.onnx").write_bytes(content)
    shutil.copy(good() / "model.onnx.data", tmp_path)
    for arguments in (["inspect", tmp_path / "model.onnx"],
                      ["rewrite", tmp_path / "model.onnx", "--to", "kvshare", "--dry-run"]):
        result = cases.run(kvshare, *arguments)
        assert result.returncode in (0, 2), (seed, result.returncode, result.stderr)


EXTERNAL = {
    "absolute": (with_weight("/etc/hostname", length=None), "external data '/etc/hostname' is an absolute path; needs one inside the model's folder"),
    "parent": (with_weight("../secret.bin"), "external data '../secret.bin' has '..'; needs a path inside the model's folder"),
    "inner parent": (with_weight("sub/../../secret.bin"), "has '..'"),
    "link": (with_weight("link.bin"), "is a link that leaves the model's folder"),
    "linked folder": (with_weight("linked/secret.bin"), "is a link that leaves the model's folder"),
    "missing": (with_weight("absent.bin"), "external data 'absent.bin' cannot be opened: No such file"),
    "folder": (with_weight("sub"), "is not a regular file"),
    "no location": (with_weight(None), "has no usable location"),
    "past the end": (with_weight("w.bin", offset="8"), "takes 16 bytes from 8 of 'w.bin', which has 16"),
    "far offset": (with_weight("w.bin", offset=str(2**63)), "takes 16 bytes from 9223372036854775808"),
    "wrong length": (with_weight("w.bin", length="12"), "has length 12; its shape and type need 16"),
    "negative": (with_weight("w.bin", offset="-4"), "has offset '-4'; needs a decimal number"),
    "no number": (with_weight("w.bin", length="many"), "has length 'many'; needs a decimal number"),
}


@pytest.mark.parametrize("ranges,text", [
    ([(0, 8), (4, 8)], "from 4 to 12 overlaps that of tensor 'w0' from 0 to 8"),
    ([(0, 16), (4, 4)], "from 4 to 8 overlaps that of tensor 'w0' from 0 to 16"),
    ([(0, 16), (0, 8)], "overlaps that of tensor"),
    ([(0, 8), (8, 8)], None),
    ([(4, 8), (4, 8)], None),  # one weight under two names
])
def test_tensors_share_all_of_their_bytes_or_none(kvshare, tmp_path, ranges, text):
    (tmp_path / "w.bin").write_bytes(bytes(16))
    tensors = []
    for i, (offset, length) in enumerate(ranges):
        tensor = with_weight("w.bin", str(offset), str(length)).graph.initializer[0]
        tensor.name, tensor.dims[:] = f"w{i}", [length // 4]
        tensors.append(tensor)
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny([node("Sum", ["x", "w0", "w1"], ["y"])], initializers=tensors).SerializeToString())
    if text:
        refuse(kvshare, model, text)
    else:
        assert cases.run(kvshare, "inspect", model).returncode == 0


def test_weights_past_4_gib_are_not_read(kvshare, tmp_path):
    """The file is sparse, and so is its copy: whoever read it all would take long, whoever counted in 32 bits would refuse."""
    size = 5 * 2**30
    with open(tmp_path / "w.bin", "wb") as file:
        file.truncate(size)
    model, other = tmp_path / "model.onnx", tmp_path / "other"
    other.mkdir()
    model.write_bytes(with_weight("w.bin", offset=str(size - 16)).SerializeToString())
    for out in (tmp_path / "out.onnx", other / "out.onnx"):
        assert "no attention layer" in cases.rewrite(kvshare, model, out, "--to", "ort")
        assert cases.load(out).graph.initializer[0].external_data[1].value == str(size - 16)
    copy = os.stat(other / "w.bin")
    assert copy.st_size == size and copy.st_blocks * 512 < 2**20
    model.write_bytes(with_weight("w.bin", offset=str(size - 15)).SerializeToString())
    refuse(kvshare, model, f"takes 16 bytes from {size - 15} of 'w.bin', which has {size}")


def test_a_model_file_past_2_gib_is_not_read(kvshare, tmp_path):
    model = tmp_path / "model.onnx"
    with open(model, "wb") as file:
        file.truncate(3 * 2**30)
    refuse(kvshare, model, "3221225472 bytes; an ONNX file has at most 2 GiB")


@pytest.mark.parametrize("depth,fine", [(30, True), (33, False)])
def test_branches_in_branches_are_read_to_protobufs_depth(kvshare, tmp_path, depth, fine):
    inner = helper.make_graph([node("Neg", ["x"], ["y0"])], "body", [], [helper.make_empty_tensor_value_info("y0")])
    flag = helper.make_tensor("flag", TensorProto.BOOL, [], [True])
    for level in range(1, depth + 1):
        holder = node("If", ["flag"], [f"y{level}" if level < depth else "y"], then_branch=inner, else_branch=onnx.GraphProto())
        inner = helper.make_graph([holder], "body", [], [helper.make_empty_tensor_value_info(holder.output[0])])
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny(list(inner.node), initializers=[flag]).SerializeToString())
    if fine:
        assert cases.inspect(kvshare, model)["nodes"] == depth + 1
    else:
        refuse(kvshare, model, "nested too deep")


@pytest.mark.parametrize("name", EXTERNAL)
def test_hostile_external_data_is_refused(kvshare, tmp_path, name):
    content, text = EXTERNAL[name]
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "w.bin").write_bytes(bytes(16))
    (folder / "link.bin").symlink_to("../secret.bin")
    (folder / "linked").symlink_to("..")
    (folder / "model.onnx").write_bytes(content.SerializeToString())
    refuse(kvshare, folder / "model.onnx", text)


def test_external_data_inside_the_folder_is_fine(kvshare, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(bytes(16))
    (tmp_path / "link.bin").symlink_to("sub/w.bin")
    for location in ("sub/w.bin", "link.bin", "./sub/w.bin"):
        (tmp_path / "model.onnx").write_bytes(with_weight(location).SerializeToString())
        assert cases.run(kvshare, "inspect", tmp_path / "model.onnx").returncode == 0
    out = tmp_path / "out"
    out.mkdir()
    report = cases.rewrite(kvshare, tmp_path / "model.onnx", out / "m.onnx", "--to", "ort")
    assert "no attention layer" in report
    assert (out / "sub" / "w.bin").read_bytes() == bytes(16)


def test_an_output_never_takes_the_place_of_its_own_weights(kvshare, tmp_path):
    shutil.copytree(good(), tmp_path / "in")
    weights = tmp_path / "in" / "model.onnx.data"
    before = weights.read_bytes()
    result = cases.run(kvshare, "rewrite", tmp_path / "in" / "model.onnx", "-o", weights, "--to", "ort")
    assert result.returncode == 3 and "external data has that name" in result.stderr
    assert weights.read_bytes() == before


def test_a_model_may_be_rewritten_in_place(kvshare, tmp_path):
    shutil.copytree(good(), tmp_path / "in")
    model = tmp_path / "in" / "model.onnx"
    cases.rewrite(kvshare, model, model, "--to", "ort")
    assert cases.operators(model)["com.microsoft", "GroupQueryAttention"] == 10


def test_an_output_never_takes_the_place_of_what_is_no_file(kvshare, tmp_path):
    """Run as root, a rewrite to /dev/null would replace the device."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    before = sorted(tmp_path.iterdir())
    for out in (tmp_path / "pipe", tmp_path / "link"):
        result = cases.run(kvshare, "rewrite", good() / "model.onnx", "-o", out, "--to", "ort")
        assert (result.returncode, f"'{out}': is a device or a pipe; needs a file" in result.stderr) == (2, True), result.stderr
    result = cases.run(kvshare, "rewrite", good() / "model.onnx", "-o", "", "--to", "ort")
    assert (result.returncode, "'': names no file" in result.stderr) == (2, True), result.stderr
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "pipe").is_fifo()


def test_dry_run_writes_nothing(kvshare, tmp_path):
    out = tmp_path / "out.onnx"
    report = cases.rewrite(kvshare, good() / "model.onnx", out, "--to", "kvshare", "--dry-run")
    assert "dry run: nothing written" in report and "applied" in report
    assert not list(tmp_path.iterdir())


def limited(kvshare, model, out, size, survives):
    """A rewrite that may write no file past `size` bytes, as if the disk were full: write() fails, or, where the signal
    of that kind is not ignored, the process is killed right in the middle of it."""

    def limit():
        if survives:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return subprocess.run([str(kvshare), "rewrite", str(model), "-o", str(out), "--to", "ort"], capture_output=True, text=True,
                          check=False, preexec_fn=limit)


@pytest.mark.parametrize("out", ["out.onnx", "model.onnx"])
def test_a_full_disk_leaves_every_file_as_it_was(kvshare, tmp_path, out):
    shutil.copytree(good(), tmp_path / "in")
    (tmp_path / "in" / "out.onnx").write_bytes(b"old")
    before = contents(tmp_path / "in")
    result = limited(kvshare, tmp_path / "in" / "model.onnx", tmp_path / "in" / out, 50_000, survives=True)
    assert result.returncode == 5 and f"cannot write '{tmp_path / 'in' / out}': File too large" in result.stderr
    assert contents(tmp_path / "in") == before


@pytest.mark.parametrize("out", ["out.onnx", "new.onnx", "model.onnx"])
def test_a_rewrite_killed_as_it_writes_leaves_every_file_as_it_was(kvshare, tmp_path, out):
    shutil.copytree(good(), tmp_path / "in")
    (tmp_path / "in" / "out.onnx").write_bytes(b"old")
    before = contents(tmp_path / "in")
    result = limited(kvshare, tmp_path / "in" / "model.onnx", tmp_path / "in" / out, 50_000, survives=False)
    assert result.returncode == -signal.SIGXFSZ
    after = contents(tmp_path / "in")
    part = [name for name in after if name.startswith(f".{out}.")]  # under a name that is nobody's
    assert len(part) == (0 if knows_files_without_names(tmp_path) else 1)
    assert all(len(after.pop(name)) == 50_000 for name in part)
    assert after == before


def knows_files_without_names(folder):
    try:
        os.close(os.open(folder, os.O_WRONLY | os.O_TMPFILE))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("survives", [True, False])
def test_weights_that_find_no_room_are_not_left_in_part(kvshare, tmp_path, survives):
    import tempfile

    if os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("/dev/shm is not a file system of its own")
    shutil.copytree(good(), tmp_path / "in")
    before = contents(tmp_path / "in")
    assert len(before["model.onnx.data"]) > 50_000
    with tempfile.TemporaryDirectory(dir="/dev/shm") as shm:
        out = pathlib.Path(shm) / "out.onnx"
        result = limited(kvshare, tmp_path / "in" / "model.onnx", out, 50_000, survives)
        assert result.returncode == (5 if survives else -signal.SIGXFSZ)
        assert [name for name in contents(out.parent) if not name.startswith(".")] == []
        assert not contents(out.parent) or not (survives or knows_files_without_names(shm))
    assert contents(tmp_path / "in") == before


# Runs in a mount namespace of its own: mounts a small tmpfs on `disk`, copies `files` there, fills it up but for `room`
# bytes, runs the command, and prints what came of it.
ON_A_SMALL_DISK = """
import json, os, pathlib, shutil, subprocess, sys
disk, files, size, room, *command = sys.argv[1:]
disk = pathlib.Path(disk)
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
shutil.copytree(files, disk, dirs_exist_ok=True)
free = os.statvfs(disk)
(disk / "filler").write_bytes(bytes(max(0, free.f_bavail * free.f_bsize - int(room))))
contents = lambda: {str(p.relative_to(disk)): p.read_bytes() for p in disk.rglob("*")}
before = contents()
done = subprocess.run(command, capture_output=True, text=True)
print(json.dumps({"code": done.returncode, "error": done.stderr, "unchanged": contents() == before}))
"""


@pytest.fixture
def small_disk(tmp_path):
    """(command, files, room) -> what the command did on a disk that holds `files` and has `room` bytes left."""
    disk = tmp_path / "disk"
    disk.mkdir()
    tried = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"no file system may be mounted here: {tried.stderr.strip()}")

    def run(command, files, room):
        done = subprocess.run(["unshare", "-rm", sys.executable, "-c", ON_A_SMALL_DISK, str(disk), str(files), "4m", str(room),
                               *map(str, command(disk))], capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize("out", ["out.onnx", "new.onnx", "model.onnx"])
def test_a_disk_that_is_really_full_leaves_every_file_as_it_was(kvshare, small_disk, tmp_path, out):
    shutil.copytree(good(), tmp_path / "in")
    (tmp_path / "in" / "out.onnx").write_bytes(b"old")
    found = small_disk(lambda disk: [kvshare, "rewrite", disk / "model.onnx", "-o", disk / out, "--to", "ort"], tmp_path / "in", 40_000)
    assert found["code"] == 5 and found["unchanged"], found
    assert f"cannot write '{tmp_path / 'disk' / out}': No space left on device" in found["error"]


def test_weights_that_find_no_room_on_a_full_disk_leave_nothing(kvshare, small_disk, tmp_path):
    (tmp_path / "empty").mkdir()
    found = small_disk(lambda disk: [kvshare, "rewrite", good() / "model.onnx", "-o", disk / "out.onnx", "--to", "ort"],
                       tmp_path / "empty", 40_000)
    assert found["code"] == 5 and found["unchanged"], found
    assert f"cannot write '{tmp_path / 'disk' / 'model.onnx.data'}': No space left on device" in found["error"]


@pytest.mark.parametrize("delay_ms", [1, 3, 6, 10, 15, 20, 30, 50])
def test_a_killed_rewrite_leaves_a_complete_output_or_none(kvshare, tmp_path, delay_ms):
    shutil.copytree(good(), tmp_path / "in")
    before = contents(tmp_path / "in")
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "out.onnx"
    process = subprocess.Popen([str(kvshare), "rewrite", str(tmp_path / "in" / "model.onnx"), "-o", str(out), "--to", "ort"],
                               stdout=subprocess.DEVNULL)
    time.sleep(delay_ms / 1000)
    process.kill()
    process.wait()
    assert contents(tmp_path / "in") == before
    if out.exists():
        assert cases.operators(out)["com.microsoft", "GroupQueryAttention"] == 10
        assert (out.parent / "model.onnx.data").read_bytes() == before["model.onnx.data"]


def test_misspelt_attributes_are_named(kvshare, tmp_path):
    model = onnx.load(str(good() / "model.onnx"), load_external_data=False)
    shutil.copy(good() / "model.onnx.data", tmp_path)
    gqa = next(n for n in model.graph.node if n.op_type == "GroupQueryAttention")
    gqa.attribute.add(name="local_windw_size", type=onnx.AttributeProto.INT, i=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    warnings = cases.inspect(kvshare, tmp_path / "model.onnx")["warnings"]
    assert any("attribute 'local_windw_size'" in w and "'local_window_size' is meant?" in w for w in warnings)
    assert any("is_causal=1 without a past" in w for w in warnings)
