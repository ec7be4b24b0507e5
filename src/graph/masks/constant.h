// Masks, or conditions of one, that a tool has folded into a constant because all shapes are fixed.
#pragma once

#include <string>

#include "graph/graph.h"
#include "graph/match/decline.h"

namespace kvshare::graph {

// A number that is added to the score of a hidden key: at or below it, even f16 hides the key.
inline constexpr double kHides = -65504.0;

struct ConstantMask {
  int64_t queries = 0;
  int64_t keys = 0;
  bool causal = false;  // query s sees nothing behind column keys - queries + s; false: it sees all keys
  int64_t window = -1;  // keys with the query's own; -1: no limit
};

bool IsConstantMask(const Graph& graph, const std::string& value);

// Judged by each element of `value`, [S, T] or more axes before them along which all is the same: bool, or a number to
// add. kMaskUnknown, with the first query that differs.
Matched<ConstantMask> ReadConstantMask(const Graph& graph, const std::string& value);

}  // namespace kvshare::graph
