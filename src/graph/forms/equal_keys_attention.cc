// Attention(q, k, v) that takes the very k and v of an earlier one: PyTorch's exporter joins past and new keys itself.
#include "graph/forms/facts.h"

namespace kvshare::graph {

bool ReadEqualKeysAttention(const LayersBefore& before, Layer& layer) {
  const Graph& graph = *layer.graph;
  const Node& node = *layer.node;
  if (node.op_type() != "Attention" || !Input(node, 4).empty()) return false;
  Trace key = BeforeExpansion(graph, Input(node, 1));
  Trace value = BeforeExpansion(graph, Input(node, 2));
  auto taker = before.TakerOf(graph, key.value, value.value);
  const bool is_turned = !taker;
  if (is_turned) {
    key = TraceUp(graph, Input(node, 1));
    value = TraceUp(graph, Input(node, 2));
    taker = before.TakerOf(graph, key.value, value.value);
  }
  if (!taker || !ReadOwnAttention(before, layer)) return false;
  if (is_turned) {
    layer.copies = key.steps;
    layer.copies.insert(layer.copies.end(), value.steps.begin(), value.steps.end());
    layer.trouble = Because(DeclineCode::kKeyIsTurned, "takes '{}' through {} nodes, its source layer {} as it is",
                            key.value, key.steps.size(), *taker);
  }
  layer.kind = LayerKind::kShared;
  layer.source = *taker;
  layer.key = key.value;
  layer.value = value.value;
  layer.made_outside = true;
  if (layer.head_size == 0) layer.head_size = before[*taker].head_size;
  layer.key_join = {};
  layer.value_join = {};
  layer.static_key = {};
  layer.static_value = {};
  return true;
}

}  // namespace kvshare::graph
