// The rotary embedding of a shared layer's query moves into GroupQueryAttention.
//
//  before   GroupQueryAttention(RotaryEmbedding(q, Gather(cos, ids), Gather(sin, ids)), ...) {do_rotary=0}
//  after    GroupQueryAttention(q, ..., cos, sin) {do_rotary=1}
//
// The node rotates by the positions it counts itself, not by ids. The proof that they agree is the source layer: it
// rotates the very keys that are borrowed, with these tables, by the positions it counts from the same seqlens_k; a
// query rotated by any others would not meet them.
#include "graph/match/attention.h"
#include "graph/rules/rule.h"

namespace kvshare::graph {
namespace {

struct Match {
  const Node* rotary = nullptr;
  std::string cos;
  std::string sin;
  std::string ids;
};

// Gather(table, ids) along axis 0.
Decline ReadGather(const Graph& graph, const std::string& value, std::string& table, std::string& ids) {
  const Node* gather = graph.Producer(graph.Origin(value));
  if (!graph.IsOnnx(gather, "Gather") || Differs(*gather, "axis"))
    return Because(DeclineCode::kRotaryUnknown, "rotary table '{}' is not gathered by position", value);
  table = graph.Origin(Input(*gather, 0));
  ids = graph.Origin(Input(*gather, 1));
  return {};
}

Matched<Match> ReadRotary(const Graph& graph, const Node* node) {
  Match match;
  match.rotary = node;
  if (!graph.IsOnnx(node, "RotaryEmbedding"))
    return Because(DeclineCode::kRotaryUnknown, "{} is {}'s; needs ai.onnx's", Describe(*node),
                   DomainOf(*node).empty() ? "the model" : DomainOf(*node));
  if (!Input(*node, 3).empty()) {
    match.cos = graph.Origin(Input(*node, 1));
    match.sin = graph.Origin(Input(*node, 2));
    match.ids = graph.Origin(Input(*node, 3));
  } else {
    std::string sin_ids;
    KVSHARE_RETURN_IF_ERROR(ReadGather(graph, Input(*node, 1), match.cos, match.ids));
    KVSHARE_RETURN_IF_ERROR(ReadGather(graph, Input(*node, 2), match.sin, sin_ids));
    if (match.ids != sin_ids)
      return Because(DeclineCode::kRotaryUnknown, "cos is gathered by '{}', sin by '{}'", match.ids, sin_ids);
  }
  if (!graph.IsInput(match.ids))
    return Because(DeclineCode::kRotaryPositions,
                   "positions '{}' are computed; needs a graph input that counts the kept tokens", match.ids);
  return match;
}

// The source must rotate the keys as the query is rotated.
Decline CheckSource(const Graph& graph, const Layer& source, const Layer& layer, const Match& match) {
  const Node& node = *source.node;
  if (IntAttribute(node, "do_rotary") != 1)
    return Because(DeclineCode::kSourceRotary, "source layer {} does not rotate its keys itself", source.index);
  const std::string& cos = graph.Origin(Input(node, 7));
  const std::string& sin = graph.Origin(Input(node, 8));
  if (cos != match.cos || sin != match.sin)
    return Because(DeclineCode::kSourceRotary, "source layer {} rotates by '{}' and '{}', the query by '{}' and '{}'",
                   source.index, cos, sin, match.cos, match.sin);
  if (!Input(node, 9).empty())
    return Because(DeclineCode::kRotaryPositions, "source layer {} takes positions from an input", source.index);
  for (const int length : {5, 6})
    if (graph.Origin(Input(node, length)) != graph.Origin(Input(*layer.node, length)))
      return Because(DeclineCode::kLengthsDiffer, "counts other lengths than source layer {}", source.index);
  const int64_t interleaved = IntAttribute(*match.rotary, "interleaved");
  const int64_t of_source = IntAttribute(node, "rotary_interleaved");
  if (interleaved != of_source)
    return Because(DeclineCode::kSourceRotary,
                   "source layer {} has rotary_interleaved {}, the query's rotary embedding {}", source.index,
                   of_source, interleaved);
  return {};
}

// GroupQueryAttention rotates 2 * extent 1 of the table, RotaryEmbedding what it says, or the whole head.
Decline CheckChannels(const Graph& graph, const Layer& layer, const Match& match) {
  const Node& node = *match.rotary;
  if (const int64_t heads = IntAttribute(node, "num_heads"); heads != layer.query_heads)
    return Because(DeclineCode::kRotaryDiffers, "{} has {} heads, the layer {}", Describe(node), heads,
                   layer.query_heads);
  const auto table = graph.Shape(match.cos);
  const int64_t pairs = table && table->size() == 2 ? (*table)[1] : 0;
  int64_t wanted = IntAttribute(node, "rotary_embedding_dim");
  if (wanted == 0) wanted = layer.head_size;
  if (wanted <= 0 || wanted % 2 != 0 || pairs != wanted / 2)
    return Because(DeclineCode::kRotaryDiffers, "{} rotates {} channels, its table serves {} pairs", Describe(node),
                   wanted, pairs);
  return {};
}

Matched<Match> MatchRotary(const Rewriting& rewriting, const Layer& layer, const Node* node) {
  const Graph& graph = *layer.graph;
  KVSHARE_ASSIGN_OR_RETURN(Match match, ReadRotary(graph, node));
  if (!layer.trouble.ok()) return layer.trouble;
  KVSHARE_RETURN_IF_ERROR(CheckSourceIsLayer(layer));
  KVSHARE_RETURN_IF_ERROR(CheckSource(graph, rewriting.SourceOf(layer), layer, match));
  KVSHARE_RETURN_IF_ERROR(CheckChannels(graph, layer, match));
  return match;
}

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  if (!layer.IsShared() || !layer.IsGqa()) return Outcome::NoMatch();
  Graph& graph = rewriting.GraphOf(layer);
  const Node& node = *layer.node;
  const Node* rotary = graph.Producer(graph.Origin(Input(node, 0)));
  if (rotary == nullptr || rotary->op_type() != "RotaryEmbedding" || Differs(node, "do_rotary"))
    return Outcome::NoMatch();
  const auto match = MatchRotary(rewriting, layer, rotary);
  if (!match.ok()) return Outcome::Declined(match.status());
  rewriting.released.push_back({&graph, Input(node, 0)});
  graph.SetInput(node, 0, Input(*match->rotary, 0));
  graph.SetInput(node, 7, match->cos);
  graph.SetInput(node, 8, match->sin);
  graph.SetInt(node, "do_rotary", 1);
  graph.SetInt(node, "rotary_interleaved", IntAttribute(*match->rotary, "interleaved"));
  return Outcome::Applied(fmt::format(
      "changed contract: shared layers take positions as their source layers count them (from seqlens_k), no "
      "longer from '{}'; the same wherever '{}' counts the kept tokens, as for right-padded batches",
      match->ids, match->ids));
}

}  // namespace

void RunFoldRotary(Rewriting& rewriting) { ForEachLayer(rewriting, kFoldRotaryRule, Apply); }

}  // namespace kvshare::graph
