#include "graph/match/attention.h"

#include <algorithm>

#include "graph/extents.h"
#include "graph/forms/facts.h"
#include "graph/match/lengths.h"
#include "graph/schema.h"

namespace kvshare::graph {
namespace {

// S of [B, S, heads * D] or [B, heads, S, D]; -1: not fixed or not known.
int64_t FixedTokensOf(const Graph& graph, const std::string& value) {
  const auto shape = graph.Shape(value);
  if (!shape || (shape->size() != 3 && shape->size() != 4)) return -1;
  return (*shape)[shape->size() - 2];
}

// S of [B, S, heads * D] or [B, heads, S, D].
Sum TokenSum(const Graph& graph, const std::string& value) {
  const auto shape = graph.Shape(value);
  return SumOfExtent(graph, value, shape && shape->size() == 3 ? 1 : 2);
}

// Its triangle and its windows end at the last key, and not begin at the first.
bool IsPlaced(const Layer& layer) { return HasPast(*layer.node) || SeesAllKeys(layer); }

// Where it is placed, right_window_size 0 (opset 25) hides what is_causal hides.
bool IsCausal(const Layer& layer) {
  const Node& node = *layer.node;
  return IntAttribute(node, "is_causal") == 1 || (IsPlaced(layer) && IntAttribute(node, "right_window_size") == 0);
}

// Those that the node sees if nothing is hidden.
Sum KeysOf(const Layer& layer) {
  const Graph& graph = *layer.graph;
  Sum keys = TokenSum(graph, BeforeExpansion(graph, Input(*layer.node, 1)).value);
  return HasPast(*layer.node) ? Add(std::move(keys), SumOfExtent(graph, Input(*layer.node, 4), 2)) : keys;
}

// Do the node's own bounds (opset 25) hide what Layer::window says, and nothing else of what `mask` shows? They count
// columns: from the past on, and from the first key where there is no past.
Decline CheckWindowAttributes(const Layer& layer, const MaskMeaning& mask) {
  const Node& node = *layer.node;
  const bool from_first_key = !IsPlaced(layer);
  if (from_first_key && IntAttribute(node, "right_window_size") >= 0 && !IsCausal(layer))
    return Because(DeclineCode::kWindowAttribute,
                   "has right_window_size without a past, which counts from the first key; needs a past");
  const int64_t left = IntAttribute(node, "left_window_size");
  if (left < 0) return {};
  if (!mask.absent && !mask.columns)
    return Because(DeclineCode::kWindowAttribute,
                   "has left_window_size, which counts columns; its mask counts the ones in '{}'", mask.key_mask);
  const bool is_narrower_in_mask = mask.window > 0 && mask.window - 1 <= left;
  if (from_first_key && !is_narrower_in_mask)
    return Because(DeclineCode::kWindowAttribute,
                   "has left_window_size without a past, which counts from the first key; needs a past");
  return {};
}

// Do the mask's columns count what the layer's query and key have? The node takes no mask with more columns than keys:
// an excess is 0 where it runs.
Decline CheckColumns(const Layer& layer, const MaskMeaning& mask) {
  const Graph& graph = *layer.graph;
  const Node& node = *layer.node;
  const Columns& columns = *mask.columns;
  if (!IsPlaced(layer) && IsCausal(layer))
    return Because(DeclineCode::kNotCausal,
                   "is_causal without a past counts from the first key, its mask from the last");
  const Sum queries = TokensOf(layer, 0);
  if (columns.queries && queries != *columns.queries)
    return Because(DeclineCode::kMaskQueries, "its mask is made for {} queries; its query has {}",
                   TextOf(*columns.queries), TextOf(queries));
  const Sum keys = KeysOf(layer);
  const Sum excess = Subtract(columns.keys, keys);
  if (!columns.excess.Is(0) && columns.excess != excess)
    return Because(DeclineCode::kMaskKeys, "its mask has {} columns, {} of them for rows that are gone; it has {} keys",
                   TextOf(columns.keys), TextOf(columns.excess), TextOf(keys));
  // Padding alone of a whole mask has a column for each key, whatever exporters call their number.
  const bool may_be_all = !columns.queries && IsPlaced(layer) && !(keys.terms.empty() && columns.keys.terms.empty());
  if (!IsExcess(excess) && !(may_be_all && SumOfExtent(graph, mask.key_mask, 1) == columns.keys))
    return Because(DeclineCode::kMaskKeys, "its mask is made for {} keys; it has {}", TextOf(columns.keys),
                   TextOf(keys));
  if (HasPast(node) && mask.padding && SumOfExtent(graph, mask.key_mask, 1) != columns.keys)
    return Because(DeclineCode::kMaskKeys, "its mask is made for {} keys; '{}' has {}", TextOf(columns.keys),
                   mask.key_mask, TextOf(SumOfExtent(graph, mask.key_mask, 1)));
  return {};
}

// Checks the source, and that layer and source agree.
Decline CheckSource(const Layer& layer, const Layer& source) {
  if (source.kv_heads != layer.kv_heads)
    return Because(DeclineCode::kSourceHeads, "source layer {} has {} key-value heads, shared layer has {}",
                   source.index, source.kv_heads, layer.kv_heads);
  if (!source.IsGqa()) return {};  // its cache is whole, and no node but the shared layer's own says what is visible
  const Node& node = *source.node;
  if (!Input(node, 12).empty() || !Input(node, 13).empty())
    return Because(DeclineCode::kSourceCache, "source layer {} has a quantized cache", source.index);
  if (Differs(node, "sliding_window_cache"))
    return Because(DeclineCode::kSourceCache, "source layer {} keeps only a window of its cache", source.index);
  if (IntAttribute(node, "causal") != 1)
    return Because(DeclineCode::kSourceNotCausal, "source layer {} is not causal", source.index);
  return {};
}

// A borrower must have no past, and no outputs that are read beside the first.
Decline CheckNoCacheOfItsOwn(const Layer& layer) {
  const Node& node = *layer.node;
  if (HasPast(node)) return Because(DeclineCode::kOwnPast, "has a past of its own beside the borrowed key");
  for (int output = 1; output < node.output_size(); ++output)
    if (!node.output(output).empty() && layer.graph->IsRead(node.output(output)))
      return Because(DeclineCode::kOutputIsRead, "its output {} '{}' is read", output, node.output(output));
  return {};
}

// The checks that need the source of a borrower.
Decline CheckBorrowing(const std::vector<Layer>& layers, const Layer& layer, const MaskMeaning& mask,
                       bool counts_lengths) {
  if (layer.source < 0) return {};
  const Layer& source = layers[static_cast<size_t>(layer.source)];
  KVSHARE_RETURN_IF_ERROR(CheckSource(layer, source));
  if (!counts_lengths) return {};
  return mask.padding ? CheckLengths(source, mask.key_mask) : CheckWholeLengths(source, mask.columns->keys);
}

// The meaning of no mask: a query sees all keys up to its own.
Matched<MaskMeaning> MeaningOfNoMask(const Layer& layer) {
  if (!IsPlaced(layer) || !IsCausal(layer))
    return Because(DeclineCode::kMaskAbsent, "has no mask; needs one that hides the padding");
  MaskMeaning all;
  all.rank = 4;
  all.columns = Columns{std::nullopt, KeysOf(layer)};
  return all;
}

Decline CheckLengthsOfItsOwn(const Layer& layer) {
  if (Input(*layer.node, 6).empty() || SeesAllKeys(layer)) return {};
  return Because(DeclineCode::kOwnLengths, "has nonpad_kv_seqlen, which is not converted");
}

// Are the rows that the layer sees by its nonpad_kv_seqlen those that its source, GroupQueryAttention, counts?
Matched<SharedMatch> MatchEnds(const Layer& layer, const Layer& source) {
  const Graph& graph = *layer.graph;
  const Node& node = *layer.node;
  if (!Input(node, 3).empty()) return Because(DeclineCode::kOwnLengths, "has a mask beside nonpad_kv_seqlen");
  if (IntAttribute(node, "is_causal") != 1 && IntAttribute(node, "right_window_size") != 0)
    return Because(DeclineCode::kNotCausal, "is not causal");
  KVSHARE_RETURN_IF_ERROR(CheckSource(layer, source));
  const std::string& seqlens = Input(*source.node, 5);
  const std::string& total = Input(*source.node, 6);
  const Sum queries = TokensOf(layer, 0);
  const auto lengths = LengthsOfEnds(graph, Input(node, 6), queries);
  const bool is_counted = lengths && lengths->seqlens == seqlens && lengths->total == total;
  const bool is_last = IsLastRow(graph, seqlens, Input(node, 6)) && KnownInts(graph, total) &&
                       queries == SumOfExtent(graph, Input(*source.node, 0), 1);
  if (!is_counted && !is_last)
    return Because(DeclineCode::kLengthsDiffer, "'{}' is not known to count what source layer {} counts",
                   Input(node, 6), source.index);
  SharedMatch match;
  match.mask.absent = true;
  match.mask.rank = 4;
  return match;
}

}  // namespace

bool SeesAllKeys(const Layer& layer) {
  const Graph& graph = *layer.graph;
  const Node* expand = graph.Producer(graph.Origin(Input(*layer.node, 6)));
  return graph.IsOnnx(expand, "Expand") &&
         SumOf(graph, Input(*expand, 0)) == TokenSum(graph, BeforeExpansion(graph, Input(*layer.node, 1)).value);
}

Sum TokensOf(const Layer& layer, int input) { return TokenSum(*layer.graph, Input(*layer.node, input)); }

Decline CheckAttentionNode(const Layer& layer) {
  const Node& node = *layer.node;
  if (auto text = UnknownAttributeText(node); !text.empty()) return {DeclineCode::kAttributeUnknown, std::move(text)};
  for (const char* window : {"left_window_size", "right_window_size"})
    if (const int64_t keys = IntAttribute(node, window); keys < -1)
      return Because(DeclineCode::kWindowAttribute, "has {} {}; needs -1 or more", window, keys);
  if (layer.query_heads <= 0 || layer.kv_heads <= 0)
    return Because(DeclineCode::kHeads,
                   "has no q_num_heads and kv_num_heads; needs them, or a query and a key of known rank 4");
  if (layer.query_heads % layer.kv_heads != 0)
    return Because(DeclineCode::kHeads, "has {} query heads for {} key-value heads", layer.query_heads, layer.kv_heads);
  if (FindAttribute(node, "scale") != nullptr && FloatAttribute(node, "scale") == 0.0F)
    return Because(DeclineCode::kScaleIsZero, "has scale 0, which GroupQueryAttention takes for 1/sqrt(head size)");
  if (const int64_t precision = IntAttribute(node, "softmax_precision");
      FindAttribute(node, "softmax_precision") != nullptr && precision != onnx::TensorProto::FLOAT)
    return Because(DeclineCode::kSoftmaxPrecision, "has softmax_precision {}; needs {} (float)", precision,
                   +onnx::TensorProto::FLOAT);
  return {};
}

Decline CheckQueries(const Layer& layer, const MaskMeaning& mask, const std::string& value, const char* what) {
  if (mask.columns) return {};  // CheckColumns compared them
  if (mask.queries >= 0) {
    if (FixedTokensOf(*layer.graph, value) == mask.queries) return {};
    if (mask.query.empty())
      return Because(DeclineCode::kMaskQueries, "its mask is made for {} queries; its {} is not known to have as many",
                     mask.queries, what);
    return Because(DeclineCode::kMaskQueries,
                   "its mask takes the number of queries from '{}', whose extent 1 is fixed to {}; its {} is not known "
                   "to have as many",
                   mask.query, mask.queries, what);
  }
  if (mask.query.empty()) return {};
  const Graph& graph = *layer.graph;
  if (!graph.DependsOn(value, mask.query))
    return Because(DeclineCode::kMaskQueries,
                   "its mask takes the number of queries from '{}', which the {} does not depend on", mask.query, what);
  // Of the caller's tokens there is one number; a value between may have more or less.
  const Graph* owner = graph.OwnerOf(mask.query);
  const bool is_given = owner != nullptr && owner->IsInput(mask.query);
  if (is_given || TokenSum(graph, mask.query) == TokenSum(graph, value)) return {};
  return Because(DeclineCode::kMaskQueries,
                 "its mask takes the number of queries from '{}', which is not known to have as many tokens as its {}",
                 mask.query, what);
}

Matched<MaskMeaning> CheckAttentionMask(const Layer& layer) {
  const Node& node = *layer.node;
  KVSHARE_ASSIGN_OR_RETURN(MaskMeaning mask,
                           Input(node, 3).empty() ? MeaningOfNoMask(layer) : ReadMask(*layer.graph, Input(node, 3)));
  if (!mask.padding && !mask.columns)
    return Because(DeclineCode::kMaskKeepsPadding, "its mask does not hide the padding");
  if (mask.columns) {
    KVSHARE_RETURN_IF_ERROR(CheckColumns(layer, mask));
    if (Sum keys = KeysOf(layer); IsExcess(Subtract(mask.columns->keys, keys))) mask.columns->keys = std::move(keys);
  }
  if (!mask.causal && !IsCausal(layer))
    return Because(DeclineCode::kNotCausal, "neither its mask nor is_causal makes it causal");
  KVSHARE_RETURN_IF_ERROR(CheckWindowAttributes(layer, mask));
  KVSHARE_RETURN_IF_ERROR(CheckQueries(layer, mask, Input(node, 0), "query"));
  return mask;
}

Matched<MaskMeaning> MatchOwnAttention(const Layer& layer) {
  const Node& node = *layer.node;
  if (!layer.trouble.ok()) return layer.trouble;
  KVSHARE_RETURN_IF_ERROR(CheckAttentionNode(layer));
  KVSHARE_RETURN_IF_ERROR(CheckLengthsOfItsOwn(layer));
  const bool whole =
      !Input(node, 4).empty() && !Input(node, 5).empty() && !Output(node, 1).empty() && !Output(node, 2).empty();
  const bool outside = !HasPast(node) && Output(node, 1).empty() && Output(node, 2).empty();
  if (!whole && !outside)
    return Because(DeclineCode::kCacheIncomplete, "has only a part of past and present; needs key and value of both");
  if (!Output(node, 3).empty()) return Because(DeclineCode::kOutputIsRead, "has qk_matmul_output");
  KVSHARE_ASSIGN_OR_RETURN(MaskMeaning mask, CheckAttentionMask(layer));
  if (outside && !mask.columns)
    return Because(DeclineCode::kKeyNotOfThisStep,
                   "takes keys made outside of it with a mask that numbers them by the ones in '{}'; needs a past",
                   mask.key_mask);
  KVSHARE_RETURN_IF_ERROR(CheckQueries(layer, mask, Input(node, 1), "key"));
  return mask;
}

Decline CheckSourceIsLayer(const Layer& layer) {
  if (layer.source >= 0) return {};
  const std::string& place = layer.graph->OwnerOf(layer.key)->place();
  return Because(DeclineCode::kKeyFromOutside, "borrows from an input of {}, not from a layer of this model",
                 place.empty() ? "the graph" : place);
}

bool NeedsItsMask(const Layer& layer) {
  if (layer.IsGqa() || layer.mask_trouble.ok()) return false;
  const auto nodes = MaskNodes(*layer.graph, MaskValueOf(layer));
  return std::ranges::any_of(nodes, [&](const Node* node) { return layer.graph->IsOnnx(node, "Or"); });
}

Decline CheckWithItsMask(const std::vector<Layer>& layers, const Layer& layer) {
  if (!layer.trouble.ok()) return layer.trouble;
  KVSHARE_RETURN_IF_ERROR(CheckAttentionNode(layer));
  const Node& node = *layer.node;
  const bool is_placed = HasPast(node) || !Input(node, 6).empty();
  for (const char* window : {"left_window_size", "right_window_size"})
    if (Differs(node, window) && Input(node, 6).empty())
      return Because(DeclineCode::kWindowAttribute, "has {} beside a mask that is needed whole", window);
  if (!is_placed && IntAttribute(node, "is_causal") == 1)
    return Because(DeclineCode::kNotCausal, "is_causal without a past counts from the first key");
  if (!layer.IsShared()) return {};
  KVSHARE_RETURN_IF_ERROR(CheckNoCacheOfItsOwn(layer));
  return layer.source < 0 ? Decline() : CheckSource(layer, layers[static_cast<size_t>(layer.source)]);
}

Matched<SharedMatch> MatchSharedAttention(const std::vector<Layer>& layers, const Layer& layer, bool counts_lengths) {
  if (!layer.trouble.ok()) return layer.trouble;
  if (counts_lengths) KVSHARE_RETURN_IF_ERROR(CheckSourceIsLayer(layer));
  // A source of another form says more about the model than any detail of this node.
  if (counts_lengths && !layers[static_cast<size_t>(layer.source)].IsGqa())
    return Because(DeclineCode::kSourceForm,
                   "source layer {} stayed Attention, whose cache may have gaps where GroupQueryAttention counts "
                   "lengths; needs GroupQueryAttention there, or option 'target' = 'kvshare-attention'",
                   layer.source);
  KVSHARE_RETURN_IF_ERROR(CheckAttentionNode(layer));
  const Node& node = *layer.node;
  KVSHARE_RETURN_IF_ERROR(CheckNoCacheOfItsOwn(layer));
  if (counts_lengths && !Input(node, 6).empty() && !SeesAllKeys(layer))
    return MatchEnds(layer, layers[static_cast<size_t>(layer.source)]);
  KVSHARE_RETURN_IF_ERROR(CheckLengthsOfItsOwn(layer));
  SharedMatch match;
  if (!counts_lengths && Input(node, 3).empty() && !IsCausal(layer)) {
    match.mask.absent = true;
    match.mask.rank = 4;
    KVSHARE_RETURN_IF_ERROR(CheckWindowAttributes(layer, match.mask));
    return match;
  }
  KVSHARE_ASSIGN_OR_RETURN(match.mask, CheckAttentionMask(layer));
  KVSHARE_RETURN_IF_ERROR(CheckBorrowing(layers, layer, match.mask, counts_lengths));
  match.repairs_causality = IsCausal(layer) && !IsPlaced(layer);
  if ((layer.made_outside || layer.source < 0) && match.repairs_causality)
    return Because(DeclineCode::kNotCausal, "is_causal without a past counts from the first key");
  return match;
}

}  // namespace kvshare::graph
