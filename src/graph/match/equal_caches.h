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

// Of graph inputs and the outputs that hand them on, by their names (PresentNames). What a step hands on unchanged is
// no cache, and a layer's keys are no values. That caches begin alike is for the caller to see to; what a step makes of
// them is proven. No caches count as equal in a graph that tells them apart in more than kMostRounds steps, each by the
// last.
EqualCaches FindEqualCaches(const Graph& graph, const std::vector<Layer>& layers);

inline constexpr int kMostRounds = 32;

}  // namespace kvshare::graph
