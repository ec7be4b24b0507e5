// What attention a graph holds, in the words of the public API.
#pragma once

#include "graph/graph.h"
#include "kvshare/rewrite.h"

namespace kvshare::graph {

// All but the equal caches, which take a look at each value of the graph.
Inspection Describe(const Graph& graph);
std::vector<EqualCache> DescribeEqualCaches(const Graph& graph);

}  // namespace kvshare::graph
