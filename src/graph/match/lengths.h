// What GroupQueryAttention's seqlens_k and total_sequence_length count.
#pragma once

#include <string>

#include "graph/layers.h"
#include "graph/match/decline.h"

namespace kvshare::graph {

// The mask of seqlens_k = Cast(Sub(ReduceSum(mask, [1]), 1)), whose ones it counts; "" where it is made in another way.
std::string MaskOfSeqlens(const Graph& graph, const std::string& seqlens);

// Is total_sequence_length extent 1 of `mask`?
bool TotalCounts(const Graph& graph, const std::string& total, const std::string& mask);

// GroupQueryAttention knows a mask only by its lengths: those of `source` must be counted from `mask`. kLengthsUnknown,
// kLengthsDiffer.
Decline CheckLengths(const Layer& source, const std::string& mask);

}  // namespace kvshare::graph
