// The names of one graph: who makes and who reads them. Kept true by each edit of Graph.
#pragma once

#include <functional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "graph/attributes.h"

namespace kvshare::graph {

// Each name that `node` reads, once for each time: its inputs, and what its bodies read of the graphs around them.
void ForEachReading(const Node& node, const std::function<void(const std::string&)>& report);

class GraphIndex {
 public:
  explicit GraphIndex(const onnx::GraphProto& graph);

  bool Defines(const std::string& value) const {
    return producers.contains(value) || inputs.contains(value) || initializers.contains(value) ||
           sparse.contains(value);
  }
  const Node* ProducerOf(const std::string& value) const;
  const std::vector<const Node*>& ReadersOf(const std::string& value) const;

  // One more or one fewer reading of `value` by `reader`, or by a body that it holds. The first readings of a new node
  // come one after another; that is faster where a value has many readers.
  void AddRead(const std::string& value, const Node& reader, bool is_new = false);
  void RemoveRead(const std::string& value, const Node& reader);

  std::unordered_map<std::string, const Node*> producers;
  std::unordered_set<std::string> inputs;
  std::unordered_set<std::string> outputs;
  std::unordered_map<std::string, const onnx::TensorProto*> initializers;
  std::unordered_map<std::string, const onnx::TypeProto*> types;
  std::unordered_set<std::string> sparse;  // sparse initializers

 private:
  struct Readers {
    std::vector<const Node*> nodes;  // each once, in the order they came
    std::vector<int> counts;         // of readings, by node
  };
  std::unordered_map<std::string, Readers> readers_;
};

}  // namespace kvshare::graph
