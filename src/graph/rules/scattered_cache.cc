// A layer whose new rows the graph scatters into its cache, right before the row where the layer's lengths end, becomes
// GroupQueryAttention, which appends them itself: in place, where past and present are bound to one buffer.
//
//  before   Attention(q, TensorScatter(past_key, k, ends - S), TensorScatter(past_value, v, ends - S), "", "", "",
//  ends)
//
//  after    kvshare::GroupQueryAttention(q, k, v, past_key, past_value, seqlens_k, total_sequence_length)
//
// A cache that is padded first grows: its lengths must be GroupQueryAttention's, as `--to onnx25` writes them.
#include "graph/match/caches.h"
#include "graph/match/static_cache.h"
#include "graph/rules/fold_heads.h"
#include "graph/rules/turn_gqa.h"

namespace kvshare::graph {
namespace {

Matched<ScatterMatch> Match(const std::vector<Layer>& layers, const Layer& layer) {
  KVSHARE_ASSIGN_OR_RETURN(ScatterMatch match, MatchScatter(layer));
  KVSHARE_RETURN_IF_ERROR(CheckCacheMakers(layers, layer));
  KVSHARE_RETURN_IF_ERROR(CheckGqaCache(*layer.graph, match.past_key, match.past_value, /*for_ort=*/false));
  KVSHARE_RETURN_IF_ERROR(CheckFold(layer));
  return match;
}

std::string Int32(Graph& graph, const Node& where, const std::string& value, const std::string& name) {
  const Node& cast = graph.InsertBefore(where, "Cast", {value}, {graph.FreshName(name)});
  graph.SetInt(cast, "to", onnx::TensorProto::INT32);
  return cast.output(0);
}

// Lengths for a cache with a fixed number of rows: only a prompt that begins at its first row can fill it.
Lengths MakeLengths(Rewriting& rewriting, const Layer& layer, const ScatterMatch& match) {
  Graph& graph = rewriting.GraphOf(layer);
  const auto ints = [&](const char* what, int64_t value) {
    std::string name = graph.FreshName(match.ends + what);
    graph.AddInts(name, {value});
    return name;
  };
  const std::string seqlens = rewriting.Once(layer, "last row before " + match.ends, [&] {
    const Node& last =
        graph.InsertBefore(*layer.node, "Sub", {match.ends, ints("_one", 1)}, {graph.FreshName(match.ends + "_last")});
    return Int32(graph, *layer.node, last.output(0), match.ends + "_seqlens_k");
  });
  const std::string total = rewriting.Once(layer, fmt::format("{} rows", match.rows), [&] {
    return Int32(graph, *layer.node, ints("_rows", match.rows), match.ends + "_total");
  });
  return {seqlens, total};
}

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  if (layer.IsShared() || layer.IsGqa() || layer.IsKvshare() || layer.static_key.writer == nullptr)
    return Outcome::NoMatch();
  const auto match = Match(rewriting.layers, layer);
  if (!match.ok()) return Outcome::Declined(match.status());
  Graph& graph = rewriting.GraphOf(layer);
  const Node& node = *layer.node;
  const std::vector<const Node*> writers = {layer.static_key.writer, layer.static_value.writer};
  for (const Node* writer : writers)
    for (const int input : {0, 2}) rewriting.released.push_back({&graph, Input(*writer, input), false});
  rewriting.released.push_back({&graph, match->ends, false});
  const Lengths lengths = match->lengths ? *match->lengths : MakeLengths(rewriting, layer, *match);
  const auto fold = [&](const std::string& value, int64_t heads) { return FoldHeads(rewriting, layer, value, heads); };
  const bool has_four_axes = HasFourAxes(layer);
  const std::string query = has_four_axes ? fold(Input(node, 0), layer.query_heads) : Input(node, 0);
  const std::string key = fold(match->key, layer.kv_heads);
  const std::string value = fold(match->value, layer.kv_heads);
  graph.SetInputs(node, {query, key, value, match->past_key, match->past_value, lengths.seqlens, lengths.total});
  TurnIntoGqa(rewriting, layer, kKvshare);
  TakeOverPresents(graph, node, *writers[0], *writers[1]);
  if (has_four_axes) UnfoldOutput(rewriting, layer);
  return Outcome::Applied("changed contract: rows of caches behind a sequence's last are zeros");
}

}  // namespace

void RunScatteredCache(Rewriting& rewriting) {
  ForEachLayer(rewriting, kScatteredCacheRule, Apply);
  rewriting.Reorder();
}

}  // namespace kvshare::graph
