#include "graph/match/padding.h"

#include <algorithm>

#include "graph/match/attention.h"
#include "graph/match/lengths.h"
#include "graph/unfused.h"

namespace kvshare::graph {
namespace {

constexpr const char* kOtherTarget = "; needs option 'target' = 'kvshare-attention', which keeps padding";

bool IsIn(const CompactLayers& compact, const Layer& layer) {
  return std::ranges::any_of(compact.layers, [&](const Layer* each) { return each->index == layer.index; });
}

// Does `value` depend on what one of the layers makes?
bool IsMadeOf(const Graph& graph, const std::string& value, const CompactLayers& compact) {
  return std::ranges::any_of(compact.layers, [&](const Layer* layer) {
    const std::string& made = layer->node->output(0);
    // What is made in a body leaves it under another name.
    return graph.OwnerOf(made) != layer->graph || graph.DependsOn(value, made);
  });
}

bool IsMask(const Graph& graph, const std::string& value, const CompactLayers& compact) {
  return value == compact.key_mask && graph.OwnerOf(value) == compact.owner;
}

bool CountsMask(const Layer& layer, const CompactLayers& compact) {
  const Graph& graph = *layer.graph;
  return layer.IsGqa() && IsMask(graph, MaskOfSeqlens(graph, Input(*layer.node, 5)), compact);
}

Matched<MaskMeaning> MeaningOf(const std::vector<Layer>& layers, const Layer& layer) {
  if (!layer.IsShared()) return MatchOwnAttention(layer);
  // The layer may count no lengths yet.
  KVSHARE_ASSIGN_OR_RETURN(SharedMatch match, MatchSharedAttention(layers, layer, /*counts_lengths=*/false));
  return std::move(match.mask);
}

// "": the layer hides what the mask hides.
std::string WhyNotHidden(const std::vector<Layer>& layers, const Layer& layer, const CompactLayers& compact) {
  const Graph& graph = *layer.graph;
  if (layer.IsGqa())
    return CountsMask(layer, compact) ? "" : fmt::format("its seqlens_k is not known to count '{}'", compact.key_mask);
  if (layer.IsKvshare() && IsMask(graph, graph.Origin(Input(*layer.node, kKeyMask)), compact)) return "";
  const auto meaning = MeaningOf(layers, layer);
  if (!meaning.ok()) return meaning.status().message();
  const bool hides = meaning->padding && IsMask(graph, meaning->key_mask, compact);
  return hides ? "" : fmt::format("it does not hide what '{}' does", compact.key_mask);
}

// Are its rows those of a compact cache, be it its own or a source's?
bool HasCompactRows(const std::vector<Layer>& layers, const Layer& layer, const CompactLayers& compact) {
  if (IsIn(compact, layer) || CountsMask(layer, compact)) return true;
  return layer.IsShared() && layer.source >= 0 &&
         HasCompactRows(layers, layers[static_cast<size_t>(layer.source)], compact);
}

// Does it see what compact layers make, or the columns of their mask?
bool SeesThem(const Layer& layer, const CompactLayers& compact) {
  const Graph& graph = *layer.graph;
  if (graph.IsFunction()) return true;  // nothing leads from its values to those of its callers
  const Node& node = *layer.node;
  for (const std::string* value : {&Input(node, 1), &Input(node, 2), &layer.key, &layer.value})
    if (IsMadeOf(graph, *value, compact)) return true;
  const std::string& mask = MaskValueOf(layer);
  if (graph.OwnerOf(compact.key_mask) != compact.owner || !graph.DependsOn(mask, compact.key_mask)) return false;
  const auto meaning = ReadMask(graph, mask);
  return !meaning.ok() || meaning->padding;
}

Decline CheckLayer(const std::vector<Layer>& layers, const Layer& layer, const CompactLayers& compact) {
  if (IsIn(compact, layer)) return {};
  const std::string why = WhyNotHidden(layers, layer, compact);
  if (why.empty() && HasCompactRows(layers, layer, compact)) return {};
  if (why.empty())
    return Because(DeclineCode::kPaddingIsSeen, "its cache would be compact, and that of layer {} keeps padding{}",
                   layer.index, kOtherTarget);
  if (!SeesThem(layer, compact)) return {};
  return Because(DeclineCode::kPaddingIsSeen,
                 "its cache would be compact, and layer {} is not known to hide the padding: {}{}", layer.index, why,
                 kOtherTarget);
}

Decline CheckUnfused(const Graph& graph, const CompactLayers& compact) {
  for (const Node* softmax : UnfusedAttention(graph))
    if (IsMadeOf(graph, Input(*softmax, 0), compact))
      return Because(DeclineCode::kPaddingIsSeen,
                     "its cache would be compact, and {} is not known to hide the padding{}", Describe(*softmax),
                     kOtherTarget);
  for (const Graph* body : graph.bodies()) KVSHARE_RETURN_IF_ERROR(CheckUnfused(*body, compact));
  return {};
}

}  // namespace

Decline CheckPadding(const Graph& graph, const std::vector<Layer>& layers, const CompactLayers& compact) {
  for (const Layer& layer : layers) KVSHARE_RETURN_IF_ERROR(CheckLayer(layers, layer, compact));
  return CheckUnfused(graph, compact);
}

}  // namespace kvshare::graph
