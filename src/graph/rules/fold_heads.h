// Between ai.onnx's Attention of rank 4 and GroupQueryAttention, whose query, key, value and output are [B, S, H * D].
#pragma once

#include <string>

#include "graph/rules/rule.h"

namespace kvshare::graph {

// `bnsh` as [B, S, H * D], right before the layer; a Transpose that made it BNSH is passed by.
std::string FoldHeads(Rewriting& rewriting, const Layer& layer, const std::string& bnsh, int64_t heads);

// The layer's output becomes [B, S, H * D], of a new name; whoever read the old one goes on reading it. The graph must
// be reordered after.
void UnfoldOutput(Rewriting& rewriting, const Layer& layer);

// Is the layer's query [B, Hq, S, D]? Attention needs q_num_heads where it is not.
bool HasFourAxes(const Layer& layer);

// kHeadSize: it is, and its head size is not known.
Decline CheckFold(const Layer& layer);

}  // namespace kvshare::graph
