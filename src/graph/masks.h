// What does a mask expression mean? Only forms whose meaning is exactly known are read; the rest gives a reason.
//
// With mask [B, T] (1 = keep), c = CumSum(mask, 1) numbers the keys; query s stands at column T-S+s:
//   kv   = Unsqueeze(c, [1])                        q = Unsqueeze(Slice(c, T-S, T, axes [1]), [2])
//   causal   GreaterOrEqual(q, kv)                  window W   Less(Sub(q, kv), W)
//   padding  Cast(bool, Unsqueeze(mask, [1])), or Unsqueeze(Cast(mask, bool), [1]), also expanded to [B, S, T]
//   bool mask  And of these          float mask  Unsqueeze(Cast?(Where(bool mask, 0, MIN)), [1])
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"
#include "kvshare/status.h"

namespace kvshare::graph {

struct MaskMeaning {
  int64_t window = -1;   // keys with the query's own; -1: no limit
  bool causal = false;   // by position, whatever is_causal says
  bool padding = false;  // keys whose mask is 0 are hidden
  int rank = 3;          // [B, S, T] or [B, 1, S, T]
  std::string key_mask;  // the graph input [B, T] all of it comes from
  std::string query;     // the value whose extent 1 gives S; "" where no query position is used
};

// kRefused, with the node and the fact, where `mask` is not one of the forms above.
Result<MaskMeaning> ReadMask(const Graph& graph, const std::string& mask);

// The nodes that compute `mask`, up to graph inputs, constants and Shape nodes.
std::vector<Node*> MaskNodes(const Graph& graph, const std::string& mask);

// If `value` is Shape(x, start:start+1), that x.
const std::string* ShapeExtentOf(const Graph& graph, const std::string& value, int64_t start);

}  // namespace kvshare::graph
