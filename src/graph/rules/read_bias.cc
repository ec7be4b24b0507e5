// An attention_bias that says no more than the node can: causality, a window, and the padding that its lengths count.
//
//  before   GroupQueryAttention(q, k, v, past, seqlens_k, total, ..., attention_bias)
//  after    GroupQueryAttention(q, k, v, past, seqlens_k, total, ...) {local_window_size=W}
#include "graph/match/gqa.h"
#include "graph/rules/rule.h"

namespace kvshare::graph {
namespace {

constexpr int kAttentionBias = 10;

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  if (!layer.IsGqa() || MaskValueOf(layer).empty()) return Outcome::NoMatch();
  if (rewriting.options.keep_own && !layer.IsShared()) return Outcome::NoMatch();
  const auto bias = MatchBias(layer);
  if (!bias.ok()) return Outcome::Declined(bias.status());
  Graph& graph = rewriting.GraphOf(layer);
  const Node& node = *layer.node;
  rewriting.released.push_back({&graph, MaskValueOf(layer)});
  std::vector<std::string> inputs(node.input().begin(), node.input().end());
  inputs[kAttentionBias] = "";
  while (inputs.back().empty()) inputs.pop_back();
  graph.SetInputs(node, inputs);
  if (layer.window != kFullWindow) graph.SetInt(node, "local_window_size", layer.window);
  return Outcome::Applied();
}

}  // namespace

void RunReadBias(Rewriting& rewriting) { ForEachLayer(rewriting, kReadBiasRule, Apply); }

}  // namespace kvshare::graph
