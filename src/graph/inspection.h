// What attention a graph holds, in the words of the public API.
#pragma once

#include "graph/graph.h"
#include "kvshare/rewrite.h"

namespace kvshare::graph {

Inspection Describe(const Graph& graph);

}  // namespace kvshare::graph
