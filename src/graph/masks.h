// What does a mask expression mean? Only forms whose meaning is exactly known are read; the rest gives a reason. Each
// way of writing masks is a dialect: masks/dialect.h.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "graph/graph.h"
#include "graph/match/decline.h"
#include "graph/sums.h"

namespace kvshare::graph {

// How a mask that compares columns places queries: query s stands at column keys - queries + s, whatever the padding.
struct Columns {
  std::optional<Sum> queries;  // nothing: the mask hides padding alone
  Sum keys;
  // It is read as if this excess were 0. CheckAttentionMask() proves that of the layer's node.
  Sum excess = {};
};

struct MaskMeaning {
  int64_t window = -1;   // keys with the query's own; -1: no limit
  bool causal = false;   // by position, whatever is_causal says
  bool padding = false;  // keys whose mask is 0 are hidden
  int rank = 3;          // [B, S, T] or [B, 1, S, T]
  std::string key_mask;  // the [B, T] all of it comes from, a graph input or its first columns; "": none
  // Where the mask takes S, the number of queries, from: extent 1 of a value, or a number that shapes fix. Both are
  // absent where no query position is used. A mask holds for a layer only if S is that of the layer's own query:
  // CheckQueries() in match/guards.h.
  std::string query;     // "": not from a value
  int64_t queries = -1;  // -1: not fixed
  // In place of both: positions are columns, and not the running count of the ones in key_mask.
  std::optional<Columns> columns;
  bool absent = false;  // there is no mask, and nothing is hidden
};

// kMaskUnknown or kMaskInputType, with the node and the fact, where no dialect reads `mask`.
Matched<MaskMeaning> ReadMask(const Graph& graph, const std::string& mask);

// The nodes that compute `mask`, up to graph inputs, constants and Shape nodes.
std::vector<const Node*> MaskNodes(const Graph& graph, const std::string& mask);

}  // namespace kvshare::graph
