#include "graph/graph_index.h"

#include <algorithm>

namespace kvshare::graph {

namespace {

void ForEachCapture(const onnx::GraphProto& body, const std::function<void(const std::string&)>& report) {
  std::unordered_set<std::string> own;
  for (const auto& input : body.input()) own.insert(input.name());
  for (const auto& initializer : body.initializer()) own.insert(initializer.name());
  for (const auto& tensor : body.sparse_initializer()) own.insert(tensor.values().name());
  for (const auto& node : body.node()) own.insert(node.output().begin(), node.output().end());
  const std::function<void(const std::string&)> outside = [&](const std::string& name) {
    if (!name.empty() && !own.contains(name)) report(name);
  };
  for (const auto& node : body.node()) ForEachReading(node, outside);
  for (const auto& output : body.output()) outside(output.name());
}

}  // namespace

void ForEachReading(const Node& node, const std::function<void(const std::string&)>& report) {
  for (const auto& input : node.input())
    if (!input.empty()) report(input);
  for (const auto& attribute : node.attribute()) {
    if (attribute.has_g()) ForEachCapture(attribute.g(), report);
    for (const auto& graph : attribute.graphs()) ForEachCapture(graph, report);
  }
}

GraphIndex::GraphIndex(const onnx::GraphProto& graph) {
  const auto size = [](const auto& field) { return static_cast<size_t>(field.size()); };
  producers.reserve(size(graph.node()));
  readers_.reserve(size(graph.node()) + size(graph.initializer()) + size(graph.input()));
  types.reserve(size(graph.value_info()) + size(graph.input()) + size(graph.output()));
  initializers.reserve(size(graph.initializer()));
  for (const Node& node : graph.node()) {
    for (const auto& output : node.output())
      if (!output.empty()) producers[output] = &node;
    ForEachReading(node, [&](const std::string& name) { AddRead(name, node, true); });
  }
  for (const auto& info : graph.value_info()) types[info.name()] = &info.type();
  for (const auto& info : graph.input()) {
    inputs.insert(info.name());
    types[info.name()] = &info.type();
  }
  for (const auto& info : graph.output()) {
    outputs.insert(info.name());
    types[info.name()] = &info.type();
  }
  for (const auto& initializer : graph.initializer()) initializers[initializer.name()] = &initializer;
  for (const auto& tensor : graph.sparse_initializer()) sparse.insert(tensor.values().name());
}

const Node* GraphIndex::ProducerOf(const std::string& value) const {
  const auto it = producers.find(value);
  return it == producers.end() ? nullptr : it->second;
}

const std::vector<const Node*>& GraphIndex::ReadersOf(const std::string& value) const {
  static const std::vector<const Node*> none;
  const auto it = readers_.find(value);
  return it == readers_.end() ? none : it->second.nodes;
}

void GraphIndex::AddRead(const std::string& value, const Node& reader, bool is_new) {
  Readers& readers = readers_[value];
  const auto begin = is_new && !readers.nodes.empty() ? readers.nodes.end() - 1 : readers.nodes.begin();
  const auto it = std::find(begin, readers.nodes.end(), &reader);
  if (it != readers.nodes.end()) {
    ++readers.counts[static_cast<size_t>(it - readers.nodes.begin())];
    return;
  }
  readers.nodes.push_back(&reader);
  readers.counts.push_back(1);
}

void GraphIndex::RemoveRead(const std::string& value, const Node& reader) {
  const auto found = readers_.find(value);
  if (found == readers_.end()) return;
  Readers& readers = found->second;
  const auto it = std::find(readers.nodes.begin(), readers.nodes.end(), &reader);
  if (it == readers.nodes.end()) return;
  const auto at = it - readers.nodes.begin();
  if (--readers.counts[static_cast<size_t>(at)] > 0) return;
  readers.nodes.erase(it);
  readers.counts.erase(readers.counts.begin() + at);
  if (readers.nodes.empty()) readers_.erase(found);
}

}  // namespace kvshare::graph
