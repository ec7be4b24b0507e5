// GroupQueryAttention(q, k, v, past_key, past_value, ...), q possibly packed with k and v.
#include "graph/forms/facts.h"

namespace kvshare::graph {

bool ReadOwnGqa(const LayersBefore& /*before*/, Layer& layer) {
  const Graph& graph = *layer.graph;
  const Node& node = *layer.node;
  if (node.op_type() != "GroupQueryAttention") return false;
  ReadGqaFacts(layer);
  // The query first: a cache of int4 holds two channels in each of its elements.
  const bool packed = Input(node, 1).empty();
  layer.head_size =
      HeadSizeIn(graph, Input(node, 0), packed ? layer.query_heads + 2 * layer.kv_heads : layer.query_heads);
  if (layer.head_size == 0) layer.head_size = HeadSizeIn(graph, Output(node, 0), layer.query_heads);
  if (layer.head_size != 0 || graph.ElementType(Input(node, 3)) == onnx::TensorProto::UINT8) return true;
  layer.head_size = HeadSizeFrom(graph, Output(node, 1));
  if (layer.head_size == 0) layer.head_size = HeadSizeFrom(graph, Input(node, 3));
  return true;
}

}  // namespace kvshare::graph
