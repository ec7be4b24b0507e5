// Attention(q, k, v, mask, past_key, past_value), past and mask possibly absent; or Attention(q, Concat(past_key, k),
// Concat(past_value, v), mask), as PyTorch's exporter writes it, with or without repeat_kv before it; or keys out of a
// static cache.
#include "graph/forms/facts.h"

namespace kvshare::graph {

bool ReadOwnAttention(const LayersBefore& /*before*/, Layer& layer) {
  const Graph& graph = *layer.graph;
  const Node& node = *layer.node;
  if (node.op_type() != "Attention") return false;
  ReadAttentionFacts(layer);
  const Trace key = BeforeExpansion(graph, Input(node, 1));
  const Trace value = BeforeExpansion(graph, Input(node, 2));
  if (key.expansion > 1) {
    layer.expansion = key.expansion;
    layer.kv_heads = ExtentOrZero(key.heads);
    layer.copies = key.steps;
    layer.copies.insert(layer.copies.end(), value.steps.begin(), value.steps.end());
  }
  if (Input(node, 4).empty() && Input(node, 5).empty()) {
    layer.key_join = JoinOf(graph, key.value);
    layer.value_join = JoinOf(graph, value.value);
    layer.static_key = StaticCacheOf(graph, key.value);
    layer.static_value = StaticCacheOf(graph, value.value);
  }
  if (const auto past = graph.Shape(layer.key_join.past); layer.kv_heads == 0 && past)
    layer.kv_heads = ExtentOrZero((*past)[1]);
  if (const auto cache = graph.Shape(layer.static_key.cache); layer.kv_heads == 0 && cache && cache->size() == 4)
    layer.kv_heads = ExtentOrZero((*cache)[1]);
  layer.head_size = HeadSizeFrom(graph, Output(node, 1));
  if (layer.head_size == 0) layer.head_size = HeadSizeFrom(graph, Input(node, 4));
  if (layer.head_size == 0) layer.head_size = HeadSizeFrom(graph, layer.key_join.past);
  if (layer.head_size == 0) layer.head_size = HeadSizeFrom(graph, layer.static_key.cache);
  if (layer.head_size == 0) layer.head_size = HeadSizeIn(graph, layer.static_key.cache, layer.kv_heads);
  if (layer.head_size == 0) layer.head_size = HeadSizeFrom(graph, Input(node, 0));
  return true;
}

}  // namespace kvshare::graph
