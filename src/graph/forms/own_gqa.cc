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
  if (layer.head_size != 0) return true;
  if (graph.ElementType(Input(node, 3)) == onnx::TensorProto::UINT8) {
    // A scale for each head's channel tells.
    const auto scales = graph.Shape(Input(node, 12));
    const int64_t count = scales && scales->size() == 1 ? scales->front() : 0;
    if (count > 1 && layer.kv_heads > 0 && count % layer.kv_heads == 0)
      layer.head_size = ExtentOrZero(count / layer.kv_heads);
    return true;
  }
  layer.head_size = HeadSizeFrom(graph, Output(node, 1));
  if (layer.head_size == 0) layer.head_size = HeadSizeFrom(graph, Input(node, 3));
  return true;
}

}  // namespace kvshare::graph
