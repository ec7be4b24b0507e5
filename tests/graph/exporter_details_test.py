"""What single exporters write otherwise: com.microsoft 2 and seqlens_k [B, 1]."""

import cases
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper


@pytest.mark.parametrize("target", ["kvshare", "ort"])
def test_com_microsoft_2_is_imported_as_it_was(kvshare, tmp_path, target):
    """ONNX Runtime announces com.microsoft 2 for the first change of a contract; the operators stay what they are."""
    case, out = cases.DATA / "mixed_bias_asis", tmp_path / "model.onnx"
    model = cases.load(case / "model.onnx")
    for imports in [model.opset_import, *[function.opset_import for function in model.functions]]:
        for one in imports:
            one.version = 2 if one.domain == "com.microsoft" else one.version
    onnx.save(model, case / "microsoft2.onnx")
    assert cases.inspect(kvshare, case / "microsoft2.onnx")["opsets"]["com.microsoft"] == 2
    assert "5 x shared-attention" in cases.rewrite(kvshare, case / "microsoft2.onnx", out, "--to", target)
    versions = [one.version for one in cases.load(out).opset_import if one.domain == "com.microsoft"]
    assert versions == [2]


def test_seqlens_k_of_two_axes_is_taken(kvshare, library, tmp_path):
    """As transformers.js's models have it: [B, 1]."""
    case, out = cases.DATA / "head_shared_gqa", tmp_path / "model.onnx"
    model = cases.load(case / "model.onnx")
    lengths = {node.input[5] for node in model.graph.node if node.op_type == "GroupQueryAttention"}
    assert len(lengths) == 1
    [seqlens] = lengths
    maker = next(index for index, node in enumerate(model.graph.node) if seqlens in node.output)
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            node.input[5] = "column"
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "last_axis"))
    model.graph.node.insert(maker + 1, helper.make_node("Unsqueeze", [seqlens, "last_axis"], ["column"]))
    onnx.save(model, case / "column.onnx")
    cases.rewrite(kvshare, case / "column.onnx", case / "column_out.onnx", "--to", "kvshare")
    assert cases.operators(case / "column_out.onnx")["kvshare", "GroupQueryAttention"] == 10
    assert max(cases.differences(case / "column_out.onnx", "head_shared_gqa", library)) <= 1e-4
