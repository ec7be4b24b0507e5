// A rule: match, guard that says why it declined, rewrite. Facts travel in the match, never in a member.
#pragma once

#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "graph/graph.h"
#include "graph/layers.h"
#include "graph/match/decline.h"
#include "graph/rules/features.h"
#include "kvshare/rewrite.h"

namespace kvshare::graph {

// The outcome of one rule for one node.
struct Outcome {
  enum class Kind { kNoMatch, kApplied, kDeclined };
  Kind kind = Kind::kNoMatch;
  Decline decline = {};   // kDeclined: why
  std::string note = "";  // kApplied: what the reader must know, "" if nothing

  static Outcome NoMatch() { return {}; }
  static Outcome Applied(std::string note = "") { return {Kind::kApplied, {}, std::move(note)}; }
  static Outcome Declined(Decline why) { return {Kind::kDeclined, std::move(why)}; }
};

// A value that a rewritten node of `graph` no longer reads.
struct Released {
  Graph* graph;
  std::string value;
  bool tell = true;  // worth a word if what makes it stays
};

// A value that a rule has made for several layers.
struct Made {
  const Graph* graph;
  int layer;  // made right before this one
  std::string what;
  std::string value;
};

// One run over one model.
struct Rewriting {
  Graph& graph;  // the main one
  const RewriteOptions& options;
  Features wanted;
  std::vector<Layer> layers = {};
  std::unordered_map<const Graph*, Graph*> graphs = {};  // each that holds layers, to edit
  std::vector<Released> released = {};
  std::vector<Made> made = {};
  std::vector<RuleOutcome> outcomes = {};
  std::vector<std::string> notes = {};

  void Record(const char* rule, const Node& node, const Outcome& outcome);
  void Note(const std::string& note);
  // Before each rule: `layers` and `graphs` as they are now.
  void LookAgain();
  // After edits that put a reader before what it reads; a cycle shows when the graph is validated.
  void Reorder();
  // The graph that holds the layer, to edit.
  Graph& GraphOf(const Layer& layer) const { return *graphs.at(layer.graph); }
  // The value that is `what`, where one was made in the layer's graph before it; else what `make` makes.
  std::string Once(const Layer& layer, const std::string& what, const std::function<std::string()>& make);
  const Layer& SourceOf(const Layer& layer) const { return layers[static_cast<size_t>(layer.source)]; }
};

struct Rule {
  const char* name;
  Features serves;  // runs where one of these is wanted
  void (*run)(Rewriting& rewriting);
};

// Records what `apply` says of each layer outside the model's functions.
void ForEachLayer(Rewriting& rewriting, const char* rule,
                  const std::function<Outcome(Rewriting&, const Layer&)>& apply);

// In the order they run.
const std::vector<Rule>& AllRules();

inline constexpr const char* kEqualCachesRule = "equal-caches";
inline constexpr const char* kRepeatKvRule = "repeat-kv";
inline constexpr const char* kOwnAttentionRule = "own-attention";
inline constexpr const char* kScatteredCacheRule = "scattered-cache";
inline constexpr const char* kStaticCacheRule = "static-cache";
inline constexpr const char* kSharedAttentionRule = "shared-attention";
inline constexpr const char* kReadBiasRule = "read-bias";
inline constexpr const char* kSharedGqaRule = "shared-gqa";
inline constexpr const char* kFoldRotaryRule = "fold-rotary";
inline constexpr const char* kOwnKeyMaskRule = "own-key-mask";
inline constexpr const char* kOwnLayersRule = "own-layers";
inline constexpr const char* kUnnamePresentsRule = "unname-presents";
inline constexpr const char* kWindowCachesRule = "window-caches";
inline constexpr const char* kKvCacheRule = "kv-cache";
inline constexpr const char* kFastPrefillRule = "fast-prefill";
inline constexpr const char* kStandardAttentionRule = "standard-attention";
inline constexpr const char* kStandardGqaRule = "standard-gqa";
inline constexpr const char* kDeadNodesRule = "dead-nodes";
inline constexpr const char* kPruneInputsRule = "prune-inputs";

void RunEqualCaches(Rewriting& rewriting);
void RunRepeatKv(Rewriting& rewriting);
void RunOwnAttention(Rewriting& rewriting);
void RunScatteredCache(Rewriting& rewriting);
void RunStaticCache(Rewriting& rewriting);
void RunSharedAttention(Rewriting& rewriting);
void RunReadBias(Rewriting& rewriting);
void RunSharedGqa(Rewriting& rewriting);
void RunFoldRotary(Rewriting& rewriting);
void RunOwnKeyMask(Rewriting& rewriting);
void RunOwnLayers(Rewriting& rewriting);
void RunUnnamePresents(Rewriting& rewriting);
void RunWindowCaches(Rewriting& rewriting);
void RunKvCache(Rewriting& rewriting);
void RunFastPrefill(Rewriting& rewriting);
void RunStandardAttention(Rewriting& rewriting);
void RunStandardGqa(Rewriting& rewriting);
void RunDeadNodes(Rewriting& rewriting);
void RunPruneInputs(Rewriting& rewriting);

}  // namespace kvshare::graph
