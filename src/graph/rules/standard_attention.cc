// A layer that says by a mask what Attention of opset 25 says by attributes: causality and a window. What stays of its
// mask is the padding.
//
//  own     Attention(q, k, v, mask, past_key, past_value)
//          -> Attention(q, k, v, padding, past_key, past_value) {is_causal, left_window_size}
//  joined  Attention(q, K, V, mask), of K = Concat(past_key, k)
//          -> Attention(q, K, V, padding, "", "", rows of K) {...}
//  shared  Attention(q, K, V, mask), K and V Transpose and Reshape of a source's presents
//          -> Attention(q, K, V, padding, "", "", rows of K) {...}
//          -> Attention(q, present_key, present_value, "", "", "", lengths) of a source that is GroupQueryAttention
#include "graph/match/attention.h"
#include "graph/opset25.h"
#include "graph/rules/standard_gqa.h"
#include "graph/rules/turn_attention.h"
#include "graph/rules/turn_gqa.h"

namespace kvshare::graph {
namespace {

// Its causality and its window are in attributes, and they count from the right row.
bool IsStandard(const Layer& layer) {
  const Node& node = *layer.node;
  const bool is_placed = !Input(node, 4).empty() || !Input(node, 6).empty() || IntAttribute(node, "is_causal") == 0;
  if (Input(node, 3).empty()) return is_placed;
  const auto mask = ReadMask(*layer.graph, Input(node, 3));
  return is_placed && mask.ok() && !mask->causal && mask->window <= 0;
}

bool CountsLengths(const Rewriting& rewriting, const Layer& layer) {
  return layer.IsShared() && layer.source >= 0 && rewriting.SourceOf(layer).IsGqa();
}

Matched<SharedMatch> Match(const Rewriting& rewriting, const Layer& layer, bool counts_lengths) {
  if (layer.IsShared()) return MatchSharedAttention(rewriting.layers, layer, counts_lengths);
  KVSHARE_ASSIGN_OR_RETURN(MaskMeaning mask, MatchOwnAttention(layer));
  return SharedMatch{std::move(mask), false};
}

StandardInputs InputsOf(Rewriting& rewriting, const Layer& layer, const MaskMeaning& mask) {
  const Node& node = *layer.node;
  StandardInputs inputs;
  inputs.query = Input(node, 0);
  inputs.key = Input(node, 1);
  inputs.value = Input(node, 2);
  inputs.as_they_were = true;
  if (mask.padding) inputs.mask = PaddingOf(rewriting, layer, mask);
  if (HasPast(node)) {
    inputs.past_key = Input(node, 4);
    inputs.past_value = Input(node, 5);
  } else {
    inputs.lengths = AllKeys(rewriting, layer);
  }
  return inputs;
}

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  if (layer.IsGqa() || !rewriting.wanted.Has(layer.IsShared() ? Feature::kToStandard : Feature::kOwnToStandard))
    return Outcome::NoMatch();
  if (layer.IsKvshare())
    return Outcome::Declined(
        Because(DeclineCode::kAlreadyConverted, "is kvshare::Attention, whose key mask ai.onnx's Attention has not"));
  if (IsStandard(layer)) return Outcome::NoMatch();
  const bool counts_lengths = CountsLengths(rewriting, layer);
  const auto match = Match(rewriting, layer, counts_lengths);
  if (!match.ok()) return Outcome::Declined(match.status());
  if (Decline odd = CheckStandardScale(*layer.node); !odd.ok()) return Outcome::Declined(std::move(odd));
  if (counts_lengths && IsFlat(layer) && layer.head_size <= 0)
    return Outcome::Declined(
        Because(DeclineCode::kHeadSize, "its head size is not known, which a query of rank 4 needs"));
  if (Decline odd = CheckRaise(rewriting.graph); !odd.ok()) return Outcome::Declined(std::move(odd));
  const MaskMeaning& mask = match->mask;
  Graph& graph = rewriting.GraphOf(layer);
  rewriting.released.push_back({&graph, Input(*layer.node, 3)});
  if (counts_lengths) {
    for (const int input : {1, 2}) rewriting.released.push_back({&graph, Input(*layer.node, input)});
    TurnBorrower(rewriting, layer, *rewriting.SourceOf(layer).node);
    NoteColumns(rewriting, layer, mask);
  } else {
    TurnIntoStandard(rewriting, layer, InputsOf(rewriting, layer, mask));
    if (Input(*layer.node, 4).empty()) graph.SetOutputs(*layer.node, {layer.node->output(0)});
  }
  NoteRank3(rewriting, mask);
  if (match->repairs_causality)
    rewriting.Note(
        "repaired: is_causal=1 without a past is aligned to the first key since ONNX Runtime 1.28, which made decoding "
        "wrong; the rewritten layers are causal by position");
  const bool counts_ones = !counts_lengths && !mask.columns && layer.window != kFullWindow;
  return Outcome::Applied(counts_ones
                              ? fmt::format("changed contract: windows count columns of '{}', no longer its "
                                            "ones; the same where no zero stands between a row's ones or behind them",
                                            mask.key_mask)
                              : "");
}

}  // namespace

void RunStandardAttention(Rewriting& rewriting) {
  ForEachLayer(rewriting, kStandardAttentionRule, Apply);
  rewriting.Reorder();
}

}  // namespace kvshare::graph
