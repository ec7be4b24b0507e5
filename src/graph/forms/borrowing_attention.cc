// Attention(q, k, v, mask) whose k and v are another layer's presents, or graph inputs: as they are, or by Transpose
// and Reshape [B, T, Hkv * D].
#include "graph/forms/facts.h"

namespace kvshare::graph {

bool ReadBorrowingAttention(const LayersBefore& before, Layer& layer) {
  const Graph& graph = *layer.graph;
  const Node& node = *layer.node;
  if (node.op_type() != "Attention") return false;
  const Trace key = TraceUp(graph, Input(node, 1));
  const Trace value = TraceUp(graph, Input(node, 2));
  const bool borrows = before.MakerOf(graph, key.value) || before.MakerOf(graph, value.value) ||
                       (graph.IsInput(key.value) && graph.IsInput(value.value) && Input(node, 4).empty());
  if (!borrows) return false;
  ReadAttentionFacts(layer);
  if (key.expansion > 1) layer.kv_heads = ExtentOrZero(key.heads);
  Borrow(before, layer, key, value);
  return true;
}

}  // namespace kvshare::graph
