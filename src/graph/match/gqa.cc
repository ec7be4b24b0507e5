#include "graph/match/gqa.h"

#include "graph/match/attention.h"
#include "graph/match/lengths.h"
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

Matched<MaskMeaning> MatchBias(const Layer& layer) {
  const Graph& graph = *layer.graph;
  const Node& node = *layer.node;
  KVSHARE_RETURN_IF_ERROR(CheckGqaNode(layer));
  KVSHARE_ASSIGN_OR_RETURN(MaskMeaning bias, ReadMask(graph, MaskValueOf(layer)));
  if (bias.columns)
    return Because(DeclineCode::kMaskUnknown,
                   "its attention_bias compares columns; the node counts the tokens that are kept");
  if (bias.rank != 4) return Because(DeclineCode::kMaskUnknown, "its attention_bias has rank {}; needs 4", bias.rank);
  if (!bias.padding) return Because(DeclineCode::kMaskKeepsPadding, "its attention_bias does not hide the padding");
  if (IntAttribute(node, "causal") != 1) return Because(DeclineCode::kNotCausal, "has causal 0 and an attention_bias");
  if (!Output(node, 3).empty())
    return Because(DeclineCode::kOutputIsRead, "has output_qk, which shows its attention_bias");
  KVSHARE_RETURN_IF_ERROR(CheckLengths(layer, bias.key_mask));
  KVSHARE_RETURN_IF_ERROR(CheckQueries(layer, bias, Input(node, 0), "query"));
  return bias;
}

}  // namespace kvshare::graph
