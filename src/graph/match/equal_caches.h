// Caches of a decoder that always hold the same: they begin alike, and each step makes the same of them.
#pragma once

#include <vector>

#include "graph/layers.h"
#include "graph/match/value_numbers.h"
#include "kvshare/rewrite.h"

namespace kvshare::graph {

struct EqualCaches {
  std::vector<EqualCache> caches;  // each but the first of those that are equal, in the order in which they are written
  ValueNumbers numbers;            // of the graph's values where those caches are equal; none without such caches
};

// Of graph inputs and the outputs that hand them on, by their names (PresentNames); a layer's keys are no values. That
// they begin alike is for the caller to see to. What a step makes of them is proven; a graph that tells caches apart in
// more than kMostRounds ways, each by means of the one before, is not looked at to its end, and none of its caches
// count as equal.
EqualCaches FindEqualCaches(const Graph& graph, const std::vector<Layer>& layers);

inline constexpr int kMostRounds = 32;

}  // namespace kvshare::graph
