"""Decoders that lie wholly in a body, masks included: their masks stay, each with a reason, and the logits are right."""
import pathlib

import onnx
import pytest
from onnx import TensorProto, helper

import ep_harness
import golden_cases
import golden_in_ep
import harness

CASES = ["mixed_bias_causal0", "mixed_bias_asis", "mixed_bool_asis"]


def body_of(graph, tag, first=()):
    """(the nodes of `graph` with names of their own, what its outputs are called there)."""
    names = {output: f"{output}_{tag}" for node in graph.node for output in node.output if output}
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    return [*first, *nodes], [names[output.name] for output in graph.output]


def in_if(graph):
    """Both branches are the decoder. The condition is an input with a default: ONNX Runtime inlines a constant one."""
    branches = {}
    for tag in ("then_branch", "else_branch"):
        nodes, outputs = body_of(graph, tag)
        branches[tag] = helper.make_graph(nodes, tag, [], [helper.make_empty_tensor_value_info(name) for name in outputs])
    graph.initializer.append(helper.make_tensor("chosen", TensorProto.BOOL, [], [True]))
    graph.input.append(helper.make_tensor_value_info("chosen", TensorProto.BOOL, []))
    return [helper.make_node("If", ["chosen"], [output.name for output in graph.output], name="whole", **branches)]


def in_loop(graph):
    """The decoder is the only turn of a Loop, whose outputs are stacked."""
    nodes, outputs = body_of(graph, "turn", [helper.make_node("Identity", ["go_on"], ["go_on_next"])])
    value = helper.make_tensor_value_info
    body = helper.make_graph(nodes, "turn", [value("i", TensorProto.INT64, []), value("go_on", TensorProto.BOOL, [])],
                             [value("go_on_next", TensorProto.BOOL, []), *map(helper.make_empty_tensor_value_info, outputs)])
    graph.initializer.append(helper.make_tensor("once", TensorProto.INT64, [], [1]))
    graph.initializer.append(helper.make_tensor("stack", TensorProto.INT64, [1], [0]))
    stacked = [f"{output.name}_stacked" for output in graph.output]
    return [helper.make_node("Loop", ["once", ""], stacked, name="whole", body=body),
            *(helper.make_node("Squeeze", [name, "stack"], [output.name]) for name, output in zip(stacked, graph.output, strict=True))]


def wrapped(case, wrap, folder):
    source = pathlib.Path(golden_in_ep.path(case))
    model = onnx.load(source, load_external_data=False)
    nodes = wrap(model.graph)
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    for weights in source.parent.glob("*.data"):
        (folder / weights.name).write_bytes(weights.read_bytes())
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return str(folder / "model.onnx")


@pytest.mark.parametrize("mode", golden_in_ep.MODES)
@pytest.mark.parametrize("wrap", [in_if, in_loop])
@pytest.mark.parametrize("case", CASES)
def test_a_decoder_within_a_body_is_right_and_keeps_its_masks(case, wrap, mode, tmp_path, capfd):
    sess = ep_harness.session(wrapped(case, wrap, tmp_path), mode=mode, log_severity=1)
    said = capfd.readouterr().err
    nodes = ep_harness.assigned(sess)
    assert {op for _, op in nodes} == {"Attention", "GroupQueryAttention"} and not ep_harness.attention_elsewhere(sess)
    for reason in ("keeps its mask: lies in a body", "its keys and values are copied: lies in a body"):
        assert (reason in said) == (mode == "fuse")
    prefill, decode, tolerance, stats = golden_cases.differences(case, harness.ORT_LIB, session=sess)
    assert max(prefill, decode) <= tolerance
    assert stats["ran"] == 7 * golden_in_ep.attention_nodes(case)
