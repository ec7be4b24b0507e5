"""`kvshare inspect --cuda`: where ONNX Runtime's CUDA provider runs the nodes, before and after a rewrite."""

import cases
import elements
import onnx
import pytest
from onnx import TensorProto, helper

ELEMENTS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
RELEASES = ["1.27", "1.28", "1.29", "1.30"]  # those before have no CUDA kernel for opset 24's Reshape


def placement(kvshare, model, release):
    return cases.inspect(kvshare, model, "--cuda", release)["cuda"]


def saved(tmp_path, nodes, inputs, outputs, opset=21, domains=()):
    value = lambda name, kind: helper.make_tensor_value_info(name, kind, None)
    graph = helper.make_graph(nodes, "g", [value(*i) for i in inputs], [value(*o) for o in outputs])
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=imports), path)
    return path


@pytest.fixture(scope="module")
def e2b(tmp_path_factory):
    """The E2B cases in each element type, by (case, element)."""
    folder, made = tmp_path_factory.mktemp("e2b"), {}

    def make(case, element):
        if (case, element) not in made:
            model = onnx.load(cases.DATA / case / "model.onnx")
            if element != "fp32":
                elements.with_element(model, ELEMENTS[element])
            made[case, element] = folder / f"{case}_{element}.onnx"
            onnx.save(model, made[case, element])
        return made[case, element]

    return make


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("case", ["e2b35_mixed_bias_asis", "e2b35_head_shared_gqa"])
def test_after_a_rewrite_no_attention_is_on_the_cpu_and_nothing_is_copied_around_it(kvshare, e2b, tmp_path, case, element):
    out = tmp_path / "model.onnx"
    cases.rewrite(kvshare, e2b(case, element), out, "--to", "kvshare")
    for release in RELEASES:
        found = placement(kvshare, out, release)
        assert (found["attention_on_cpu"], found["attention_copies"]) == (0, []), found
        unknown = [note for note in found["notes"] if " not known: " in note]
        assert all("not known: a function of the model" in note for note in unknown), unknown


def test_what_an_older_release_lacks_is_named(kvshare, e2b, tmp_path):
    """The cases are of opset 24: before 1.27 their Reshapes run on the CPU, whatever attention does."""
    out = tmp_path / "model.onnx"
    cases.rewrite(kvshare, e2b("e2b35_mixed_bias_asis", "fp32"), out, "--to", "kvshare")
    found = placement(kvshare, out, "1.26")
    assert found["attention_on_cpu"] == 0 and found["attention_copies"]
    assert any("Reshape on the CPU: no CUDA kernel" in note for note in found["notes"])


def test_before_it_fp32_attention_is_on_the_cpu(kvshare, e2b):
    """ONNX Runtime's GroupQueryAttention has no CUDA kernel of fp32: its 15 layers come back for each step."""
    found = placement(kvshare, e2b("e2b35_mixed_bias_asis", "fp32"), "1.29")
    assert found["attention_on_cpu"] >= 15 and found["attention_copies"]


def test_copies_are_counted_where_both_sides_touch_a_value(kvshare, tmp_path):
    """Det has no CUDA kernel: one copy to it, one back. Shape's arithmetic stays on the CPU and costs none."""
    model = saved(tmp_path, [
        helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Det", ["a"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]), helper.make_node("Shape", ["a"], ["s"]),
        helper.make_node("Add", ["s", "s"], ["t"]), helper.make_node("Expand", ["e", "t"], ["y"]),
    ], [("x", TensorProto.FLOAT)], [("y", TensorProto.FLOAT)])
    found = placement(kvshare, model, "1.29")
    assert (found["cuda_nodes"], found["cpu_nodes"], found["copies"]) == (4, 2, 2), found
    assert any("Det on the CPU: no CUDA kernel" in note for note in found["notes"])
    assert any("Add on the CPU: arithmetic of shapes" in note for note in found["notes"])


def test_a_type_without_a_kernel_is_named(kvshare, tmp_path):
    model = saved(tmp_path, [helper.make_node("Where", ["c", "x", "x"], ["y"])],
                  [("c", TensorProto.BOOL), ("x", TensorProto.INT8)], [("y", TensorProto.INT8)])
    found = placement(kvshare, model, "1.29")
    assert found["cpu_nodes"] == 1 and "no CUDA kernel for input 1 of i8" in found["notes"][0]


@pytest.mark.parametrize("mask, refused", [("BOOL", False), ("FLOAT", False), ("DOUBLE", True), ("INT32", True)])
def test_masks_that_kvshare_refuses_on_cuda_are_named(kvshare, tmp_path, mask, refused):
    node = helper.make_node("Attention", ["q", "k", "v", "m"], ["y"], domain="kvshare", q_num_heads=2, kv_num_heads=2)
    inputs = [*((name, TensorProto.FLOAT) for name in "qkv"), ("m", getattr(TensorProto, mask))]
    model = saved(tmp_path, [node], inputs, [("y", TensorProto.FLOAT)], domains=["kvshare"])
    found = placement(kvshare, model, "1.29")
    assert found["attention_on_cpu"] == refused, found
    assert any("no CUDA kernel for attn_mask of" in note for note in found["notes"]) == refused


def test_what_the_table_does_not_hold_is_not_known(kvshare, tmp_path):
    model = saved(tmp_path, [helper.make_node("Strange", ["x"], ["y"], domain="elsewhere")],
                  [("x", TensorProto.FLOAT)], [("y", TensorProto.FLOAT)], domains=["elsewhere"])
    found = placement(kvshare, model, "1.29")
    assert (found["unknown_nodes"], found["copies"]) == (1, 0)
    assert "Strange not known: no kernel in the table" in found["notes"][0]


def test_the_text_says_the_same(kvshare):
    result = cases.run(kvshare, "inspect", cases.DATA / "head_shared_gqa" / "model.onnx", "--cuda", "1.29.1")
    assert "CUDA of ONNX Runtime 1.29, predicted:" in result.stdout and "GroupQueryAttention on the CPU" in result.stdout


@pytest.mark.parametrize("release, unfinished", [("1.29", False), ("1.30", True)])
def test_a_table_older_than_its_release_says_so(kvshare, release, unfinished):
    notes = placement(kvshare, cases.DATA / "head_shared_gqa" / "model.onnx", release)["notes"]
    assert any("is of sources of 22 August 2026" in note for note in notes) == unfinished


@pytest.mark.parametrize("release", ["1.31", "1.99", "2.0", "1.", "latest"])
def test_a_release_without_a_table_is_refused(kvshare, release):
    result = cases.run(kvshare, "inspect", cases.DATA / "head_shared_gqa" / "model.onnx", "--cuda", release)
    assert result.returncode != 0
    assert f"--cuda {release}: which CUDA kernels that release has is not known; needs 1.23 to 1.30" in result.stderr
