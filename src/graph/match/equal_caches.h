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

// Finds equal caches among graph inputs and the outputs that hand them on, by their names (PresentNames). What a
// step hands on unchanged is no cache, and a layer's keys never equal values. The caller sees to it that caches begin
// alike; what a step makes of them is proven. A graph that tells caches apart in more than kMostRounds steps, each by
// the last, has no equal ones.
EqualCaches FindEqualCaches(const Graph& graph, const std::vector<Layer>& layers);

inline constexpr int kMostRounds = 32;

}  // namespace kvshare::graph
