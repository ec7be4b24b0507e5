"""Which folders hold a decoder with golden logits that kvshare's operators serve."""
import os

import onnx


def served(folder):
    """Names of the folders in `folder`, sorted. A graph without golden logits is there to be read, not run; one whose attention
    is MatMul and Softmax has nothing to serve.
    """
    return sorted(name for name in os.listdir(folder) if _is_served(os.path.join(folder, name)))


def _is_served(case):
    if not os.path.isfile(os.path.join(case, "golden.npz")):
        return False
    model = onnx.load(os.path.join(case, "model.onnx"), load_external_data=False)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return any(node.op_type in ("Attention", "GroupQueryAttention") for node in nodes)
