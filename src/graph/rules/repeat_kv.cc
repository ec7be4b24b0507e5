// Attention takes the key-value heads as they are: each group of query heads reads its own, with nothing copied for it.
// The result is the same number for number.
//
//  before   K -> Unsqueeze -> Expand -> Reshape -> Attention(q, k, v, mask)        after   Attention(q, K, V, mask)
#include "graph/match/repeat.h"
#include "graph/rules/rule.h"

namespace kvshare::graph {
namespace {

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  if (layer.IsGqa() || layer.expansion <= 1) return Outcome::NoMatch();
  if (rewriting.options.keep_own && !layer.IsShared()) return Outcome::NoMatch();
  const auto match = MatchRepeat(layer);
  if (!match.ok()) return Outcome::Declined(match.status());
  Graph& graph = rewriting.GraphOf(layer);
  const Node& node = *layer.node;
  for (const int input : {1, 2}) rewriting.released.push_back({&graph, Input(node, input)});
  graph.SetInput(node, 1, match->key);
  graph.SetInput(node, 2, match->value);
  if (FindAttribute(node, "kv_num_heads") != nullptr) graph.SetInt(node, "kv_num_heads", layer.kv_heads);
  return Outcome::Applied();
}

}  // namespace

void RunRepeatKv(Rewriting& rewriting) { ForEachLayer(rewriting, kRepeatKvRule, Apply); }

}  // namespace kvshare::graph
