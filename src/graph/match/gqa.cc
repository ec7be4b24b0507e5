#include "graph/match/gqa.h"

#include "graph/schema.h"

namespace kvshare::graph {

Decline CheckGqaNode(const Layer& layer) {
  if (auto text = UnknownAttributeText(*layer.node); !text.empty())
    return {DeclineCode::kAttributeUnknown, std::move(text)};
  if (layer.window == 0) return Because(DeclineCode::kWindowIsZero, "has local_window_size 0; needs -1 or at least 1");
  return {};
}

Decline CheckSharedGqa(const std::vector<Layer>& layers, const Layer& layer) {
  if (!layer.trouble.ok()) return layer.trouble;
  KVSHARE_RETURN_IF_ERROR(CheckGqaNode(layer));
  if (layer.source < 0) return {};  // a graph input, which has no window and the heads that the node says
  const Layer& source = layers[static_cast<size_t>(layer.source)];
  const bool is_whole = !Differs(*source.node, "sliding_window_cache");
  if (!is_whole && source.window != layer.window)
    return Because(DeclineCode::kSourceWindow, "source layer {} has window {}, shared layer has {}", source.index,
                   WindowText(source.window), WindowText(layer.window));
  if (source.kv_heads != layer.kv_heads)
    return Because(DeclineCode::kSourceHeads, "source layer {} has {} key-value heads, shared layer has {}",
                   source.index, source.kv_heads, layer.kv_heads);
  return {};
}

}  // namespace kvshare::graph
