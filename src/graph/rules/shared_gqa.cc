// Upstream's shared form becomes kvshare's; for ONNX Runtime itself, an empty key that is a constant of batch 1 becomes
// one of the query's batch.
//
//  before   com.microsoft::GroupQueryAttention(q, empty, empty, past: source.present, seqlens_k, total, ...)
//  after    kvshare::GroupQueryAttention(q, seqlens_k, total, ..., external: source.present)
#include "graph/match/gqa.h"
#include "graph/rules/empty_key.h"
#include "graph/rules/rule.h"

namespace kvshare::graph {
namespace {

void Replace(Rewriting& rewriting, const Layer& layer, int input, const std::string& value) {
  Graph& graph = rewriting.GraphOf(layer);
  rewriting.released.push_back({&graph, Input(*layer.node, input)});
  graph.SetInput(*layer.node, input, value);
}

void GiveEmptyKey(Rewriting& rewriting, const Layer& layer) {
  const std::string empty = EmptyKey(rewriting, layer);
  for (const int input : {1, 2}) Replace(rewriting, layer, input, empty);
  rewriting.layers[static_cast<size_t>(layer.index)].constant_empty = false;  // the next borrower may read it too
}

void TurnIntoKvshare(Rewriting& rewriting, const Layer& layer) {
  for (const int input : {1, 2, 3, 4}) Replace(rewriting, layer, input, "");
  Graph& graph = rewriting.GraphOf(layer);
  graph.SetInput(*layer.node, kExternalKey, layer.key);
  graph.SetInput(*layer.node, kExternalValue, layer.value);
  graph.SetOp(*layer.node, kKvshare, layer.node->op_type());
  graph.RequireImport(kKvshare, 1);
}

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  const bool to_ort = rewriting.wanted.Has(Feature::kToEmptyKey);
  if (!layer.IsShared() || !layer.IsGqa() || layer.IsKvshare() || (to_ort && !layer.constant_empty))
    return Outcome::NoMatch();
  Decline odd = CheckSharedGqa(rewriting.layers, layer);
  if (odd.ok() && to_ort) odd = CheckEmptyKey(layer);
  if (!odd.ok()) return Outcome::Declined(std::move(odd));
  const bool repairs = layer.constant_empty;
  if (to_ort) {
    GiveEmptyKey(rewriting, layer);
  } else {
    TurnIntoKvshare(rewriting, layer);
  }
  return Outcome::Applied(repairs ? "repaired: the empty key was a constant, which fixed the batch to 1; any batch fits"
                                  : "");
}

}  // namespace

void RunSharedGqa(Rewriting& rewriting) { ForEachLayer(rewriting, kSharedGqaRule, Apply); }

}  // namespace kvshare::graph
