// Attention that a graph writes out in single operators: seen and counted, not rewritten.
#pragma once

#include <cstdint>
#include <vector>

#include "graph/graph.h"

namespace kvshare::graph {

// Softmax nodes of `graph` itself whose scores a MatMul makes of two computed values, and whose weights another MatMul
// joins with a third: softmax(q k^T ...) v. A MatMul by a constant is a projection, as of a router of experts.
std::vector<const Node*> UnfusedAttention(const Graph& graph);

// How many there are in the main graph `graph` and its bodies, and once more for each call in functions.
int64_t CountUnfusedAttention(const Graph& graph);

}  // namespace kvshare::graph
