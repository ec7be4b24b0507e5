// Attention(q, k, v) that takes the very k and v of an earlier one: PyTorch's exporter joins past and new keys itself.
#include "graph/forms/facts.h"

namespace kvshare::graph {

bool ReadEqualKeysAttention(const LayersBefore& before, Layer& layer) {
  const Graph& graph = *layer.graph;
  const Node& node = *layer.node;
  if (node.op_type() != "Attention" || !Input(node, 4).empty()) return false;
  const Trace key = BeforeExpansion(graph, Input(node, 1));
  const Trace value = BeforeExpansion(graph, Input(node, 2));
  const auto taker = before.TakerOf(graph, key.value, value.value);
  if (!taker || !ReadOwnAttention(before, layer)) return false;
  layer.kind = LayerKind::kShared;
  layer.source = *taker;
  if (layer.head_size == 0) layer.head_size = before[*taker].head_size;
  layer.trouble =
      layer.expansion > 1
          ? Because(
                DeclineCode::kKeyIsExpanded,
                "takes the same key and value as layer {}, made outside of both; the graph repeats each of their {} "
                "heads {} times",
                *taker, layer.kv_heads, layer.expansion)
          : Because(DeclineCode::kKeyIsMadeOutside,
                    "takes the same key and value as layer {}, made outside of both; nothing is copied for it, and "
                    "drop-in serves it as it is",
                    *taker);
  return true;
}

}  // namespace kvshare::graph
