// A layer that borrows K/V through Attention and a mask becomes one that borrows them directly.
//
//  before   source.present -> Transpose -> Reshape -> Attention(q, k, v, mask)
//  kvshare             kvshare::GroupQueryAttention(q, seqlens_k, total, external: source.present)
//  kvshare-attention   kvshare::Attention(q, source.present, key_mask)
//  ort                 GroupQueryAttention(q, empty, empty, past: source.present, seqlens_k, total)
#include "graph/match/attention.h"
#include "graph/rules/empty_key.h"
#include "graph/rules/turn_gqa.h"

namespace kvshare::graph {
namespace {

void KeepOutputs(const Graph& graph, Node& node, bool names_presents) {
  node.mutable_output()->DeleteSubrange(1, node.output_size() - 1);
  if (!names_presents) return;
  node.add_output(graph.FreshName(node.output(0) + "_present_key"));
  node.add_output(graph.FreshName(node.output(0) + "_present_value"));
}

void TurnIntoKvshareGqa(const Layer& layer, const Layer& source) {
  Node& node = *layer.node;
  const std::string query = Input(node, 0);
  node.clear_input();
  SetInput(node, 0, query);
  SetInput(node, 5, Input(*source.node, 5));
  SetInput(node, 6, Input(*source.node, 6));
  SetInput(node, kExternalKey, layer.key);
  SetInput(node, kExternalValue, layer.value);
  TurnIntoGqa(layer);
  node.set_domain(kKvshare);
}

void TurnIntoOrtGqa(Rewriting& rewriting, const Layer& layer, const Layer& source) {
  Node& node = *layer.node;
  const std::string empty = EmptyKey(rewriting, layer);
  const std::string query = Input(node, 0);
  node.clear_input();
  for (const auto& input :
       {query, empty, empty, layer.key, layer.value, Input(*source.node, 5), Input(*source.node, 6)})
    node.add_input(input);
  TurnIntoGqa(layer);
  node.set_domain(kMicrosoft);
}

void TurnIntoKvshareAttention(const Layer& layer, const MaskMeaning& mask) {
  Node& node = *layer.node;
  SetInput(node, 1, layer.key);
  SetInput(node, 2, layer.value);
  SetInput(node, 3, "");
  SetInput(node, kKeyMask, mask.key_mask);
  SetInt(node, "is_causal", 1);
  if (layer.window != kFullWindow) SetInt(node, "local_window_size", layer.window);
  node.set_domain(kKvshare);
}

Outcome AlreadyConverted(const Rewriting& rewriting, const Layer& layer) {
  const Target target = rewriting.options.target;
  if (target == Target::kOrt && layer.IsKvshare())
    return Outcome::Declined(
        Because(DeclineCode::kAlreadyConverted, "is kvshare's already; {{target}} ort does not turn it back"));
  if (target == Target::kKvshareAttention && layer.IsGqa())
    return Outcome::Declined(
        Because(DeclineCode::kAlreadyConverted,
                "is GroupQueryAttention already; {{target}} kvshare-attention turns Attention only"));
  if (target == Target::kKvshare && layer.IsKvshare() && !layer.IsGqa())
    return Outcome::Declined(Because(DeclineCode::kAlreadyConverted,
                                     "is kvshare::Attention already; {{target}} kvshare does not turn it further"));
  return Outcome::NoMatch();
}

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  if (!layer.IsShared()) return Outcome::NoMatch();
  if (layer.IsGqa() || layer.IsKvshare()) return AlreadyConverted(rewriting, layer);
  const Target target = rewriting.options.target;
  const auto match = MatchSharedAttention(rewriting.layers, layer, target != Target::kKvshareAttention);
  if (!match.ok()) return Outcome::Declined(match.status());
  if (target == Target::kOrt)
    if (Decline odd = CheckEmptyKey(layer); !odd.ok()) return Outcome::Declined(std::move(odd));

  Graph& graph = rewriting.GraphOf(layer);
  const Layer& source = rewriting.SourceOf(layer);
  for (const int input : {1, 2, 3}) rewriting.released.push_back({&graph, Input(*layer.node, input)});
  if (target == Target::kKvshareAttention) {
    TurnIntoKvshareAttention(layer, match->mask);
  } else if (target == Target::kKvshare) {
    TurnIntoKvshareGqa(layer, source);
  } else {
    TurnIntoOrtGqa(rewriting, layer, source);
  }
  KeepOutputs(graph, *layer.node, rewriting.names_presents);
  if (target != Target::kOrt) graph.RequireImport(kKvshare, 1);
  graph.Touch();
  NoteRank3(rewriting, match->mask);
  return Outcome::Applied(match->repairs_causality ? "repaired: is_causal=1 without a past is aligned to the first key "
                                                     "since ONNX Runtime 1.28, which made decoding "
                                                     "wrong; the rewritten layers are causal by position"
                                                   : "");
}

}  // namespace

void RunSharedAttention(Rewriting& rewriting) {
  ForEachLayer(rewriting, kSharedAttentionRule, Apply);
  for (const Layer& layer : rewriting.layers)
    if (layer.graph->IsFunction())
      rewriting.Record(kSharedAttentionRule, *layer.node, Outcome::Declined(layer.trouble));
}

}  // namespace kvshare::graph
