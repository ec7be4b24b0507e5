"""A model of fp32 as one of fp16 or bf16: weights, declared types, casts and constants; the structure stays."""

import onnx
from onnx import TensorProto, numpy_helper


def _narrow(tensor, element):
    if tensor.data_type != TensorProto.FLOAT:
        return
    values = numpy_helper.to_array(tensor).astype(onnx.helper.tensor_dtype_to_np_dtype(element))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def with_element(model, element):
    """`model`, loaded with its weights, in place; `element` is TensorProto.FLOAT16 or BFLOAT16."""
    graph = model.graph
    for tensor in graph.initializer:
        _narrow(tensor, element)
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = element
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _narrow(attribute.t, element)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = element
    return model
