// Which tokens GroupQueryAttention's seqlens_k and total_sequence_length count.
#pragma once

#include <optional>
#include <string>

#include "graph/layers.h"
#include "graph/match/decline.h"
#include "graph/sums.h"

namespace kvshare::graph {

struct Lengths {
  std::string seqlens;  // seqlens_k
  std::string total;    // total_sequence_length
};

// The mask of seqlens_k = Cast(Sub(ReduceSum(mask, [1]), 1)), whose ones it counts; "" where it is made in another way.
std::string MaskOfSeqlens(const Graph& graph, const std::string& seqlens);

// Is total_sequence_length extent 1 of `mask`?
bool TotalCounts(const Graph& graph, const std::string& total, const std::string& mask);

// GroupQueryAttention knows a mask only by its lengths: those of `source` must be counted from `mask`. kLengthsUnknown,
// kLengthsDiffer.
Decline CheckLengths(const Layer& source, const std::string& mask);

// The same, of a mask that hides no padding: each sequence has all `keys`.
Decline CheckWholeLengths(const Layer& source, const Sum& keys);

// nonpad_kv_seqlen [B] as `--to onnx25` writes it for GroupQueryAttention of `queries` tokens, which ends at the row
//   Where(Equal(queries, total), queries, seqlens_k + 1)
// Nothing where `ends` is made in another way.
std::optional<Lengths> LengthsOfEnds(const Graph& graph, const std::string& ends, const Sum& queries);

// The same number of rows, [1], as `--to onnx25` flattens it: total_sequence_length; "" where it is made in another
// way.
std::string BeforeFlat(const Graph& graph, const std::string& flat);

// Is `seqlens` ends - 1, in any type of integers?
bool IsLastRow(const Graph& graph, const std::string& seqlens, const std::string& ends);

}  // namespace kvshare::graph
