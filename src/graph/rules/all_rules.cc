// The rules, once, in order. The graph is validated after each.
#include <algorithm>

#include "graph/rules/rule.h"

namespace kvshare::graph {

const std::vector<Rule>& AllRules() {
  static const std::vector<Rule> rules = {
      {kEqualCachesRule, {Feature::kOneOfEqualCaches}, RunEqualCaches},
      {kRepeatKvRule, {Feature::kHeadsAsTheyAre}, RunRepeatKv},
      {kOwnAttentionRule, {Feature::kOwnGqa}, RunOwnAttention},
      {kScatteredCacheRule, {Feature::kOwnInKvshare}, RunScatteredCache},
      {kOwnKeyMaskRule, {Feature::kOwnToKeyMask}, RunOwnKeyMask},
      {kSharedAttentionRule, {Feature::kToExternalKey, Feature::kToEmptyKey, Feature::kToKeyMask}, RunSharedAttention},
      {kReadBiasRule, {Feature::kToExternalKey, Feature::kToEmptyKey}, RunReadBias},
      {kSharedGqaRule, {Feature::kToExternalKey, Feature::kToEmptyKey}, RunSharedGqa},
      {kStaticCacheRule, {Feature::kStaticCaches}, RunStaticCache},
      {kFoldRotaryRule, {Feature::kFoldRotary}, RunFoldRotary},
      {kOwnLayersRule, {Feature::kOwnInKvshare}, RunOwnLayers},
      {kUnnamePresentsRule, {Feature::kToExternalKey, Feature::kToEmptyKey}, RunUnnamePresents},
      {kFastPrefillRule, {Feature::kLastToken}, RunFastPrefill},
      {kStandardAttentionRule, {Feature::kOwnToStandard, Feature::kToStandard}, RunStandardAttention},
      {kStandardGqaRule, {Feature::kOwnToStandard, Feature::kToStandard}, RunStandardGqa},
      {kDeadNodesRule,
       {Feature::kToExternalKey, Feature::kToEmptyKey, Feature::kToKeyMask, Feature::kToStandard},
       RunDeadNodes},
      {kWindowCachesRule, {Feature::kWindowCaches}, RunWindowCaches},
      {kKvCacheRule, {Feature::kNarrowCaches}, RunKvCache},
      {kPruneInputsRule, {Feature::kPruneInputs}, RunPruneInputs},
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

std::string Rewriting::Once(const Layer& layer, const std::string& what, const std::function<std::string()>& make) {
  for (const Made& each : made)
    if (each.graph == layer.graph && each.layer <= layer.index && each.what == what) return each.value;
  made.push_back({layer.graph, layer.index, what, make()});
  return made.back().value;
}

void Rewriting::LookAgain() {
  layers = FindLayers(graph);
  graphs.clear();
  std::vector<Graph*> open = {&graph};
  while (!open.empty()) {
    Graph* next = open.back();
    open.pop_back();
    graphs[next] = next;
    for (Graph* body : next->bodies()) open.push_back(body);
  }
}

void Rewriting::Reorder() {
  for (const auto& [held, edited] : graphs) static_cast<void>(edited->Reorder());
}

void ForEachLayer(Rewriting& rewriting, const char* rule,
                  const std::function<Outcome(Rewriting&, const Layer&)>& apply) {
  for (const Layer& layer : rewriting.layers)
    if (!layer.graph->IsFunction()) rewriting.Record(rule, *layer.node, apply(rewriting, layer));
}

}  // namespace kvshare::graph
