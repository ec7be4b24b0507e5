// Parts of Graph that its files share.
#pragma once

#include <algorithm>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "graph/graph.h"

namespace kvshare::graph {

// The values that depend on one value of `owner`, in it and in the bodies below it.
struct Graph::Dependents {
  const Graph* owner;
  std::string ancestor;
  std::unordered_map<const Graph*, std::unordered_set<std::string>> values = {};

  bool Has(const Graph* graph, const std::string& value) const {
    if (graph == owner && value == ancestor) return true;
    const auto it = values.find(graph);
    return it != values.end() && it->second.contains(value);
  }
  // Whether Has() may be true of `value` in some graph: quicker to ask than which graph it is of.
  bool HasAnywhere(const std::string& value) const {
    return value == ancestor ||
           std::ranges::any_of(values, [&](const auto& in_graph) { return in_graph.second.contains(value); });
  }
};

struct Graph::Removed {
  std::unordered_set<const Node*> nodes;
  std::unordered_set<std::string> initializers;
};

}  // namespace kvshare::graph
