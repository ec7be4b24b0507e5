"""Weights beside a model: which links are followed, and what becomes of the weights of a rewritten model."""

import os
import pathlib
import shutil

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
