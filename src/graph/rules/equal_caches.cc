// Caches that always hold the same, as those of layers that write the key and value they borrow into caches of their
// own: one of them stays, and what the graph makes of the others.
//
//  before   present_1 = Scatter(past_1, rows, k)   read_1 = Gather(present_1, seen)
//           present_3 = Scatter(past_3, rows, k)   read_3 = Gather(present_3, seen)
//
//  after    present_1 = Scatter(past_1, rows, k)   read_1 = read_3 = Gather(present_1, seen)
//
// Whoever runs the model begins with caches that are alike, empty or zeros, and hands each present on as its past.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "graph/match/equal_caches.h"
#include "graph/match/readers.h"
#include "graph/rules/rule.h"

namespace kvshare::graph {
namespace {

// Replaces `value` by `other` as an operand of nodes. Bodies still capture `value`.
void ReadInstead(Graph& graph, const std::string& value, const std::string& other) {
  const std::vector<const Node*> readers = graph.Consumers(value);
  for (const Node* reader : readers)
    for (int i = 0; i < reader->input_size(); ++i)
      if (reader->input(i) == value) graph.SetInput(*reader, i, other);
}

// Readers of a value in `behind` read the first value that equals it. That one lies before all others, so the order of
// nodes holds.
void Merge(Rewriting& rewriting, const ValueNumbers& numbers, const std::unordered_set<std::string>& behind) {
  Graph& graph = rewriting.graph;
  std::unordered_map<int64_t, std::string> first;
  for (const auto& input : graph.proto().input()) first.emplace(numbers.Of(input.name()), input.name());
  for (const Node* node : graph.nodes()) {
    bool is_needed = false;
    bool is_behind = false;
    for (const std::string& output : node->output()) {
      if (output.empty()) continue;
      is_behind = behind.contains(output);
      const auto& [number, earlier] = *first.emplace(numbers.Of(output), output).first;
      if (earlier != output && is_behind) ReadInstead(graph, output, earlier);
      is_needed = is_needed || earlier == output || graph.IsRead(output);
    }
    if (is_needed || !is_behind) continue;
    for (const std::string& value : ReadNames(*node)) rewriting.released.push_back({&graph, value, false});
    graph.Remove(*node);
  }
  graph.TrimValueInfo();
}

}  // namespace

void RunEqualCaches(Rewriting& rewriting) {
  Graph& graph = rewriting.graph;
  const EqualCaches equal = FindEqualCaches(graph, rewriting.layers);
  std::vector<EqualCache> gone;
  std::unordered_set<std::string> pasts;
  for (const EqualCache& cache : equal.caches) {
    const Decline read = CheckReaders(graph, cache.past, [](const Node& /*reader*/) { return true; });
    rewriting.outcomes.push_back({kEqualCachesRule, cache.past, read.ok(), read.message(), TextOf(read.code())});
    if (!read.ok()) continue;
    gone.push_back(cache);
    pasts.insert(cache.past);
  }
  if (gone.empty()) return;
  const auto behind = MadeWith(graph, std::move(pasts));
  std::vector<std::string> texts;
  for (const EqualCache& cache : gone) {
    ReadInstead(graph, cache.past, cache.of);
    graph.RemoveInput(cache.past);
    graph.RemoveOutput(cache.present);
    texts.push_back(fmt::format("'{}' is '{}'", cache.past, cache.of));
  }
  Merge(rewriting, equal.numbers, behind);
  rewriting.Note(
      fmt::format("changed contract: inputs and outputs of {} caches go that always hold what another does, where all "
                  "begin alike, empty or zeros: {}",
                  gone.size(), fmt::join(texts, ", ")));
}

}  // namespace kvshare::graph
