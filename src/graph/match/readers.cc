#include "graph/match/readers.h"

#include <algorithm>
#include <unordered_set>

namespace kvshare::graph {

Decline CheckReaders(const Graph& graph, const std::string& value, const IsTaken& taken) {
  if (graph.IsOutput(value)) return Because(DeclineCode::kValueIsOutput, "is still read by graph output '{}'", value);
  for (const Node* reader : graph.Consumers(value)) {
    const auto& inputs = reader->input();
    std::ptrdiff_t readings = 0;
    ForEachReading(*reader, [&](const std::string& name) { readings += name == value ? 1 : 0; });
    if (readings > std::count(inputs.begin(), inputs.end(), value))
      return Because(DeclineCode::kValueIsCaptured, "is still read by a body of {}", Describe(*reader));
    if (!taken(*reader)) return Because(DeclineCode::kValueIsRead, "is still read by {}", Describe(*reader));
  }
  return {};
}

Decline CheckReadersOf(const Graph& graph, const Node& node, const IsTaken& taken) {
  for (const auto& output : node.output())
    if (!output.empty()) KVSHARE_RETURN_IF_ERROR(CheckReaders(graph, output, taken));
  return {};
}

std::unordered_set<std::string> MadeWith(const Graph& graph, std::unordered_set<std::string> values,
                                         const IsTaken& ends) {
  if (values.empty()) return values;
  for (const Node* node : graph.nodes()) {
    if (ends && ends(*node)) continue;
    const auto reads = ReadNames(*node);
    if (std::ranges::any_of(reads, [&](const std::string& name) { return values.contains(name); }))
      values.insert(node->output().begin(), node->output().end());
  }
  return values;
}

std::unordered_set<const Node*> NeededNodes(const Graph& graph, const std::string& but) {
  std::unordered_set<const Node*> needed;
  std::vector<std::string> open;
  for (const auto& output : graph.proto().output())
    if (output.name() != but) open.push_back(output.name());
  while (!open.empty()) {
    const Node* node = graph.Producer(open.back());
    open.pop_back();
    if (node == nullptr || !needed.insert(node).second) continue;
    for (auto& name : ReadNames(*node)) open.push_back(std::move(name));
  }
  return needed;
}

std::vector<const Node*> NodesOnlyFor(const Graph& graph, const std::vector<std::string>& values,
                                      const IsTaken& taken) {
  std::unordered_set<const Node*> only;
  std::unordered_set<std::string> wanted(values.begin(), values.end());
  const IsTaken each_other = [&](const Node& node) { return only.contains(&node); };
  const IsTaken ours = [&](const Node& node) { return each_other(node) || taken(node); };
  const auto is_only_ours = [&](const Node& node) {
    return std::ranges::all_of(node.output(), [&](const std::string& output) {
      const bool is_asked_for = std::ranges::find(values, output) != values.end();
      return output.empty() || CheckReaders(graph, output, is_asked_for ? ours : each_other).ok();
    });
  };
  const auto nodes = graph.nodes();
  // Readers lie behind what they read: from the back, all readers of a node are judged before it is.
  for (auto it = nodes.rbegin(); it != nodes.rend(); ++it) {
    const Node& node = **it;
    const bool makes = std::any_of(node.output().begin(), node.output().end(),
                                   [&](const auto& output) { return wanted.contains(output); });
    if (!makes || taken(node) || !graph.BodiesOf(node).empty() || !is_only_ours(node)) continue;
    only.insert(&node);
    for (const auto& input : node.input())
      if (!input.empty()) wanted.insert(input);
  }
  std::vector<const Node*> found;
  for (const Node* node : nodes)
    if (only.contains(node)) found.push_back(node);
  return found;
}

}  // namespace kvshare::graph
