// A layer that borrows K/V through Attention and a mask becomes one that borrows them directly.
//
//  before   source.present -> Transpose -> Reshape -> Attention(q, k, v, mask)
//  kvshare             kvshare::GroupQueryAttention(q, seqlens_k, total, external: source.present)
//  kvshare-attention   kvshare::Attention(q, source.present, key_mask), or with a mask of padding alone
//  ort                 GroupQueryAttention(q, empty, empty, past: source.present, seqlens_k, total)
#include "graph/match/attention.h"
#include "graph/match/static_cache.h"
#include "graph/rules/empty_key.h"
#include "graph/rules/fold_heads.h"
#include "graph/rules/turn_attention.h"
#include "graph/rules/turn_gqa.h"

namespace kvshare::graph {
namespace {

void KeepOutputs(Graph& graph, const Node& node, bool named_presents) {
  std::vector<std::string> outputs = {node.output(0)};
  if (named_presents)
    for (const char* present : {"_present_key", "_present_value"})
      outputs.push_back(graph.FreshName(node.output(0) + present));
  graph.SetOutputs(node, outputs);
}

void TurnIntoKvshareGqa(Rewriting& rewriting, const Layer& layer, const Layer& source) {
  std::vector<std::string> inputs(kExternalValue + 1);
  inputs[0] = Input(*layer.node, 0);
  inputs[5] = Input(*source.node, 5);
  inputs[6] = Input(*source.node, 6);
  inputs[kExternalKey] = layer.key;
  inputs[kExternalValue] = layer.value;
  rewriting.GraphOf(layer).SetInputs(*layer.node, inputs);
  TurnIntoGqa(rewriting, layer, kKvshare);
}

void TurnIntoOrtGqa(Rewriting& rewriting, const Layer& layer, const Layer& source) {
  const std::string empty = EmptyKey(rewriting, layer);
  rewriting.GraphOf(layer).SetInputs(*layer.node, {Input(*layer.node, 0), empty, empty, layer.key, layer.value,
                                                   Input(*source.node, 5), Input(*source.node, 6)});
  TurnIntoGqa(rewriting, layer, kMicrosoft);
}

void TurnIntoBorrowingGqa(Rewriting& rewriting, const Layer& layer) {
  const bool folds = HasFourAxes(layer);
  const Node& node = *layer.node;
  const std::string query = folds ? FoldHeads(rewriting, layer, Input(node, 0), layer.query_heads) : Input(node, 0);
  rewriting.GraphOf(layer).SetInput(node, 0, query);
  const Layer& source = rewriting.SourceOf(layer);
  if (rewriting.wanted.Has(Feature::kToExternalKey)) {
    TurnIntoKvshareGqa(rewriting, layer, source);
  } else {
    TurnIntoOrtGqa(rewriting, layer, source);
  }
  Graph& graph = rewriting.GraphOf(layer);
  KeepOutputs(graph, node, rewriting.wanted.Has(Feature::kNamedPresents));
  if (folds) UnfoldOutput(rewriting, layer);
}

Outcome AlreadyConverted(const Rewriting& rewriting, const Layer& layer) {
  const Features& wanted = rewriting.wanted;
  if (wanted.Has(Feature::kToEmptyKey) && layer.IsKvshare())
    return Outcome::Declined(
        Because(DeclineCode::kAlreadyConverted, "is kvshare's already; option 'target' = 'ort' does not turn it back"));
  if (wanted.Has(Feature::kToKeyMask) && layer.IsGqa())
    return Outcome::Declined(
        Because(DeclineCode::kAlreadyConverted,
                "is GroupQueryAttention already; option 'target' = 'kvshare-attention' turns Attention only"));
  if (wanted.Has(Feature::kToExternalKey) && layer.IsKvshare() && !layer.IsGqa())
    return Outcome::Declined(
        Because(DeclineCode::kAlreadyConverted,
                "is kvshare::Attention already; option 'target' = 'kvshare' does not turn it further"));
  return Outcome::NoMatch();
}

// Does the rule static-cache turn it?
bool StaysOnStaticCache(const Rewriting& rewriting, const Layer& layer) {
  const bool may_count = rewriting.wanted.Has(Feature::kToExternalKey) && !layer.IsKvshare() && layer.source >= 0 &&
                         rewriting.SourceOf(layer).IsGqa();
  return rewriting.wanted.Has(Feature::kStaticCaches) && !may_count && SeesStaticCache(rewriting.layers, layer);
}

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  if (!layer.IsShared() || StaysOnStaticCache(rewriting, layer)) return Outcome::NoMatch();
  if (layer.IsGqa() || layer.IsKvshare()) return AlreadyConverted(rewriting, layer);
  const Features& wanted = rewriting.wanted;
  if (wanted.Has(Feature::kToKeyMask) && NeedsItsMask(layer)) return TurnWithItsMask(rewriting, layer);
  const auto match = MatchSharedAttention(rewriting.layers, layer, !wanted.Has(Feature::kToKeyMask));
  if (!match.ok()) return Outcome::Declined(match.status());
  if (!wanted.Has(Feature::kToKeyMask))
    if (Decline odd = CheckFold(layer); !odd.ok()) return Outcome::Declined(std::move(odd));
  if (wanted.Has(Feature::kToEmptyKey))
    if (Decline odd = CheckEmptyKey(layer); !odd.ok()) return Outcome::Declined(std::move(odd));

  Graph& graph = rewriting.GraphOf(layer);
  const int first_released = layer.made_outside ? 3 : 1;
  for (int input = first_released; input <= 3; ++input)
    rewriting.released.push_back({&graph, Input(*layer.node, input)});
  rewriting.released.push_back({&graph, Input(*layer.node, 6), false});
  if (wanted.Has(Feature::kToKeyMask)) {
    if (!layer.made_outside) {
      graph.SetInput(*layer.node, 1, layer.key);
      graph.SetInput(*layer.node, 2, layer.value);
    }
    TurnIntoKvshareAttention(rewriting, layer, match->mask);
    KeepOutputs(graph, *layer.node, false);
  } else {
    TurnIntoBorrowingGqa(rewriting, layer);
    NoteColumns(rewriting, layer, match->mask);
  }
  NoteRank3(rewriting, match->mask);
  return Outcome::Applied(match->repairs_causality ? "repaired: is_causal=1 without a past is aligned to the first key "
                                                     "since ONNX Runtime 1.28, which made decoding "
                                                     "wrong; the rewritten layers are causal by position"
                                                   : "");
}

}  // namespace

void RunSharedAttention(Rewriting& rewriting) {
  ForEachLayer(rewriting, kSharedAttentionRule, Apply);
  rewriting.Reorder();
  for (const Layer& layer : rewriting.layers)
    if (layer.graph->IsFunction())
      rewriting.Record(kSharedAttentionRule, *layer.node, Outcome::Declined(layer.trouble));
}

}  // namespace kvshare::graph
