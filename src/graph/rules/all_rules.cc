// The rules, once, in order. The graph is validated after each.
#include <algorithm>

#include "graph/rules/rule.h"

namespace kvshare::graph {

const std::vector<Rule>& AllRules() {
  static const std::vector<Rule> rules = {
      {kOwnAttentionRule, [](const RewriteOptions& o) { return o.target != Target::kKvshareAttention && !o.keep_own; },
       RunOwnAttention},
      {kSharedAttentionRule, [](const RewriteOptions&) { return true; }, RunSharedAttention},
      {kSharedGqaRule, [](const RewriteOptions& o) { return o.target != Target::kKvshareAttention; }, RunSharedGqa},
      {kFoldRotaryRule, [](const RewriteOptions& o) { return o.rope == Rope::kFold; }, RunFoldRotary},
      {kOwnLayersRule, [](const RewriteOptions& o) { return o.target == Target::kKvshare && !o.keep_own; },
       RunOwnLayers},
      {kUnnamePresentsRule, [](const RewriteOptions& o) { return o.target != Target::kKvshareAttention; },
       RunUnnamePresents},
      {kDeadNodesRule, [](const RewriteOptions&) { return true; }, RunDeadNodes},
      {kPruneInputsRule, [](const RewriteOptions& o) { return o.prune_inputs; }, RunPruneInputs},
  };
  return rules;
}

void Rewriting::Record(const char* rule, const Node& node, const Outcome& outcome) {
  if (outcome.kind == Outcome::Kind::kNoMatch) return;
  outcomes.push_back({rule, NameOf(node), outcome.kind == Outcome::Kind::kApplied, outcome.decline.message(),
                      TextOf(outcome.decline.code())});
  if (!outcome.note.empty()) Note(outcome.note);
}

void Rewriting::Note(const std::string& note) {
  if (std::find(notes.begin(), notes.end(), note) == notes.end()) notes.push_back(note);
}

Graph& Rewriting::GraphOf(const Layer& layer) {
  std::vector<Graph*> open = {&graph};
  while (open.back() != layer.graph) {
    Graph* next = open.back();
    open.pop_back();
    for (Graph* body : next->bodies()) open.push_back(body);
  }
  return *open.back();
}

void ForEachLayer(Rewriting& rewriting, const char* rule, Outcome (*apply)(Rewriting&, const Layer&)) {
  for (const Layer& layer : rewriting.layers)
    if (!layer.graph->IsFunction()) rewriting.Record(rule, *layer.node, apply(rewriting, layer));
}

}  // namespace kvshare::graph
