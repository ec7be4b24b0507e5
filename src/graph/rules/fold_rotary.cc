// The rotary embedding of a shared layer's query moves into GroupQueryAttention.
//
//  before   GroupQueryAttention(RotaryEmbedding(q, Gather(cos, ids), Gather(sin, ids)), ...) {do_rotary=0}
//  after    GroupQueryAttention(q, ..., cos, sin) {do_rotary=1}
//
// The node rotates by the positions it counts itself, not by ids. The proof that they agree is the source layer: it
// rotates the very keys that are borrowed, with these tables, by the positions it counts from the same seqlens_k; a
// query rotated by any others would not meet them.
#include "graph/rules/rule.h"

namespace kvshare::graph {
namespace {

struct Match {
  Node* rotary = nullptr;
  std::string cos;
  std::string sin;
  std::string ids;
};

Status Reason(std::string text) { return Status::Refused(std::move(text)); }

// Gather(table, ids) along axis 0.
Status ReadGather(const Graph& graph, const std::string& value, std::string& table, std::string& ids) {
  const Node* gather = graph.Producer(value);
  if (!graph.IsOnnx(gather, "Gather") || IntAttribute(*gather, "axis", 0) != 0)
    return Reason(fmt::format("rotary table '{}' is not gathered by position", value));
  table = Input(*gather, 0);
  ids = Input(*gather, 1);
  return {};
}

Result<Match> ReadRotary(const Graph& graph, Node* node) {
  Match match;
  match.rotary = node;
  if (!node->domain().empty())
    return Reason(fmt::format("{} is {}'s; needs ai.onnx's", Describe(*node), node->domain()));
  if (!Input(*node, 3).empty()) {
    match.cos = Input(*node, 1);
    match.sin = Input(*node, 2);
    match.ids = Input(*node, 3);
  } else {
    std::string sin_ids;
    KVSHARE_RETURN_IF_ERROR(ReadGather(graph, Input(*node, 1), match.cos, match.ids));
    KVSHARE_RETURN_IF_ERROR(ReadGather(graph, Input(*node, 2), match.sin, sin_ids));
    if (match.ids != sin_ids) return Reason(fmt::format("cos is gathered by '{}', sin by '{}'", match.ids, sin_ids));
  }
  if (!graph.IsInput(match.ids))
    return Reason(
        fmt::format("positions '{}' are computed; needs a graph input that counts the kept tokens", match.ids));
  return match;
}

Result<Match> MatchRotary(const Rewriting& rewriting, const Layer& layer, Node* node) {
  const Graph& graph = *layer.graph;
  KVSHARE_ASSIGN_OR_RETURN(Match match, ReadRotary(graph, node));
  if (!layer.trouble.empty()) return Reason(layer.trouble);
  const Node& source = *rewriting.SourceOf(layer).node;
  if (IntAttribute(source, "do_rotary", 0) != 1)
    return Reason(fmt::format("source layer {} does not rotate its keys itself", layer.source));
  if (Input(source, 7) != match.cos || Input(source, 8) != match.sin)
    return Reason(fmt::format("source layer {} rotates by '{}' and '{}', the query by '{}' and '{}'", layer.source,
                              Input(source, 7), Input(source, 8), match.cos, match.sin));
  if (!Input(source, 9).empty())
    return Reason(fmt::format("source layer {} takes positions from an input", layer.source));
  if (Input(source, 5) != Input(*layer.node, 5) || Input(source, 6) != Input(*layer.node, 6))
    return Reason(fmt::format("counts other lengths than source layer {}", layer.source));
  const int64_t interleaved = IntAttribute(*node, "interleaved", 0);
  if (interleaved != IntAttribute(source, "rotary_interleaved", 0))
    return Reason(fmt::format("source layer {} has rotary_interleaved {}, the query's rotary embedding {}",
                              layer.source, 1 - interleaved, interleaved));
  if (const int64_t heads = IntAttribute(*node, "num_heads", 0); heads != layer.query_heads)
    return Reason(fmt::format("{} has {} heads, the layer {}", Describe(*node), heads, layer.query_heads));
  // GroupQueryAttention rotates 2 * extent 1 of the table, RotaryEmbedding what it says, or the whole head.
  const auto table = graph.Shape(match.cos);
  const int64_t pairs = table && table->size() == 2 ? (*table)[1] : 0;
  int64_t wanted = IntAttribute(*node, "rotary_embedding_dim", 0);
  if (wanted == 0) wanted = layer.head_size;
  if (wanted <= 0 || wanted % 2 != 0 || pairs != wanted / 2)
    return Reason(fmt::format("{} rotates {} channels, its table serves {} pairs", Describe(*node), wanted, pairs));
  return match;
}

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  if (!layer.IsShared() || !layer.IsGqa()) return Outcome::NoMatch();
  Graph& graph = rewriting.GraphOf(layer);
  Node& node = *layer.node;
  Node* rotary = graph.Producer(Input(node, 0));
  if (rotary == nullptr || rotary->op_type() != "RotaryEmbedding" || IntAttribute(node, "do_rotary", 0) != 0)
    return Outcome::NoMatch();
  const auto match = MatchRotary(rewriting, layer, rotary);
  if (!match.ok()) return Outcome::Decline("{}", match.status().message());
  rewriting.released.push_back({&graph, Input(node, 0)});
  SetInput(node, 0, Input(*match->rotary, 0));
  SetInput(node, 7, match->cos);
  SetInput(node, 8, match->sin);
  SetInt(node, "do_rotary", 1);
  SetInt(node, "rotary_interleaved", IntAttribute(*match->rotary, "interleaved", 0));
  graph.Touch();
  return Outcome::Applied(fmt::format(
      "changed contract: shared layers take positions as their source layers count them (from seqlens_k), no "
      "longer from '{}'; the same wherever '{}' counts the kept tokens, as for right-padded batches",
      match->ids, match->ids));
}

}  // namespace

void RunFoldRotary(Rewriting& rewriting) { ForEachLayer(rewriting, kFoldRotaryRule, Apply); }

}  // namespace kvshare::graph
