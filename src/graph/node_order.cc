#include "graph/node_order.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <queue>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "graph/graph.h"
#include "graph/graph_index.h"

namespace kvshare::graph {
namespace {

using IsOutside = std::function<bool(const std::string& name)>;

// Where the values of a graph come from. The names are the graph's own.
struct Sources {
  std::unordered_set<std::string_view> given;          // inputs and initializers
  std::unordered_map<std::string_view, size_t> maker;  // by output: the node's place in the graph
};

Status AddGiven(const onnx::GraphProto& graph, const std::string& place, Sources& sources) {
  for (const auto& input : graph.input())
    if (!sources.given.insert(input.name()).second)
      return Status::InvalidInput(fmt::format("{}: graph input '{}' is declared twice", place, input.name()));
  std::unordered_set<std::string_view> initializers;  // an input may have one, as its default
  for (const auto& initializer : graph.initializer())
    if (!initializers.insert(initializer.name()).second)
      return Status::InvalidInput(fmt::format("{}: initializer '{}' is given twice", place, initializer.name()));
  for (const auto& initializer : graph.sparse_initializer()) initializers.insert(initializer.values().name());
  sources.given.merge(initializers);
  return {};
}

Status AddMakers(const std::vector<Node*>& nodes, Sources& sources) {
  for (size_t i = 0; i < nodes.size(); ++i)
    for (const auto& output : nodes[i]->output()) {
      if (output.empty()) continue;
      if (sources.given.contains(output) || !sources.maker.emplace(output, i).second)
        return Status::InvalidInput(fmt::format("{}: output '{}' has another producer already; needs a name of its own",
                                                Describe(*nodes[i]), output));
    }
  return {};
}

Status CheckOutputs(const onnx::GraphProto& graph, const std::string& place, const Sources& sources,
                    const IsOutside& is_outside) {
  for (const auto& output : graph.output())
    if (!sources.given.contains(output.name()) && !sources.maker.contains(output.name()) && !is_outside(output.name()))
      return Status::InvalidInput(fmt::format("{}: graph output '{}' is produced by no node", place, output.name()));
  return {};
}

// Which nodes still wait for values of other nodes.
struct Waiting {
  std::vector<int> open;                     // of each node: values that it reads of nodes not yet in order
  std::vector<std::vector<size_t>> readers;  // of each node
};

Result<Waiting> FindReaders(const std::vector<Node*>& nodes, const Sources& sources, const IsOutside& is_outside) {
  Waiting waiting{std::vector<int>(nodes.size(), 0), std::vector<std::vector<size_t>>(nodes.size())};
  Status missing;
  for (size_t i = 0; i < nodes.size() && missing.ok(); ++i)
    ForEachReading(*nodes[i], [&](const std::string& name) {
      if (const auto made = sources.maker.find(name); made != sources.maker.end()) {
        waiting.readers[made->second].push_back(i);
        ++waiting.open[i];
      } else if (missing.ok() && !sources.given.contains(name) && !is_outside(name)) {
        missing =
            Status::InvalidInput(fmt::format("{}: input '{}' is produced by no node; needs a producer, a graph input "
                                             "or an initializer of that name",
                                             Describe(*nodes[i]), name));
      }
    });
  KVSHARE_RETURN_IF_ERROR(missing);
  return waiting;
}

Result<std::vector<Node*>> InOrder(const std::vector<Node*>& nodes, Waiting waiting) {
  std::priority_queue<size_t, std::vector<size_t>, std::greater<>> ready;  // the first in the graph first
  for (size_t i = 0; i < nodes.size(); ++i)
    if (waiting.open[i] == 0) ready.push(i);
  std::vector<Node*> sorted;
  while (!ready.empty()) {
    const size_t i = ready.top();
    ready.pop();
    sorted.push_back(nodes[i]);
    for (const size_t reader : waiting.readers[i])
      if (--waiting.open[reader] == 0) ready.push(reader);
  }
  if (sorted.size() == nodes.size()) return sorted;
  const auto stuck = std::ranges::find_if(waiting.open, [](int count) { return count > 0; });
  return Status::InvalidInput(fmt::format("{}: is part of a cycle or waits for one; a graph must have none",
                                          Describe(*nodes[static_cast<size_t>(stuck - waiting.open.begin())])));
}

}  // namespace

Result<std::vector<Node*>> OrderNodes(onnx::GraphProto& graph, const std::string& place, const IsOutside& is_outside) {
  auto& field = *graph.mutable_node();
  const std::vector<Node*> nodes(field.pointer_begin(), field.pointer_end());
  Sources sources;
  KVSHARE_RETURN_IF_ERROR(AddGiven(graph, place, sources));
  KVSHARE_RETURN_IF_ERROR(AddMakers(nodes, sources));
  KVSHARE_RETURN_IF_ERROR(CheckOutputs(graph, place, sources, is_outside));
  KVSHARE_ASSIGN_OR_RETURN(Waiting waiting, FindReaders(nodes, sources, is_outside));
  return InOrder(nodes, std::move(waiting));
}

}  // namespace kvshare::graph
