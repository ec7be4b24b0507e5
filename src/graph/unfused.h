// Attention that a graph writes out in single operators: seen and counted, not rewritten.
#pragma once

#include <cstdint>

#include "graph/graph.h"

namespace kvshare::graph {

// Softmax nodes of the main graph `graph` and its bodies, and once more for each call those of functions, whose scores
// a MatMul makes of two computed values, and whose weights another MatMul joins with a third: softmax(q k^T ...) v. A
// MatMul by a constant is a projection, as of a router of experts.
int64_t CountUnfusedAttention(const Graph& graph);

}  // namespace kvshare::graph
