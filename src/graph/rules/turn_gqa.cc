#include "graph/rules/turn_gqa.h"

#include <fmt/format.h>

#include <algorithm>

namespace kvshare::graph {

void NoteRank3(Rewriting& rewriting, const MaskMeaning& mask) {
  if (mask.rank == 3)
    rewriting.Note(
        "masks were [B,S,T], whose B the specification lines up with the heads; they are taken as meant, one a "
        "sequence, so batches larger than 1 are repaired");
}

void NoteColumns(Rewriting& rewriting, const Layer& layer, const MaskMeaning& mask) {
  if (!mask.padding || !mask.columns || !mask.columns->queries) return;
  const std::string& source = NameOf(*rewriting.SourceOf(layer).node);
  const bool is_said = std::ranges::any_of(rewriting.outcomes, [&](const RuleOutcome& outcome) {
    return outcome.rule == kOwnAttentionRule && outcome.applied && outcome.node == source;
  });
  if (is_said) return;
  rewriting.Note(
      fmt::format("changed contract: queries of layers that borrow stand behind the kept tokens of '{}', no longer at "
                  "its last columns; the same for prompts, and where no row of it ends in zeros",
                  mask.key_mask));
}

void TurnIntoGqa(Rewriting& rewriting, const Layer& layer, const std::string& domain) {
  Graph& graph = rewriting.GraphOf(layer);
  const Node& node = *layer.node;
  const Node old = node;
  graph.ClearAttributes(node);
  graph.SetInt(node, "num_heads", layer.query_heads);
  graph.SetInt(node, "kv_num_heads", layer.kv_heads);
  graph.SetInt(node, "do_rotary", 0);
  if (layer.window != kFullWindow) graph.SetInt(node, "local_window_size", layer.window);
  for (const char* kept : {"scale", "softcap"}) {
    const auto* attribute = FindAttribute(old, kept);
    if (attribute != nullptr && attribute->f() != 0.0F) graph.SetAttribute(node, *attribute);
  }
  graph.SetOp(node, domain, "GroupQueryAttention");
  graph.RequireImport(domain, 1);
}

void TakeOverPresents(Graph& graph, const Node& node, const Node& key, const Node& value) {
  const std::vector<std::string> outputs = {node.output(0), key.output(0), value.output(0)};
  graph.Remove(key);
  graph.Remove(value);
  graph.SetOutputs(node, outputs);
}

}  // namespace kvshare::graph
