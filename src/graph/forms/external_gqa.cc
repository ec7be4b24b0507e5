// kvshare::GroupQueryAttention(q, ..., external_key, external_value): borrows by name.
#include "graph/forms/facts.h"

namespace kvshare::graph {

bool ReadExternalGqa(const LayersBefore& before, Layer& layer) {
  const Node& node = *layer.node;
  if (node.op_type() != "GroupQueryAttention" || !layer.IsKvshare() || Input(node, kExternalKey).empty()) return false;
  ReadGqaFacts(layer);
  const Graph& graph = *layer.graph;
  Borrow(before, layer, {graph.Origin(Input(node, kExternalKey))}, {graph.Origin(Input(node, kExternalValue))});
  return true;
}

}  // namespace kvshare::graph
