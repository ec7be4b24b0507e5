// How far apart logits are.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvshare/tensor.h"
#include "kvshare/verify.h"

namespace kvshare::host {

// NaN wins.
double Larger(double a, double b);

// Are `logits` those of the last tokens alone, where those of [B, S, V] were expected?
bool OfLastTokens(const Tensor& logits, const std::vector<int64_t>& want);

// kInvalidInput where `logits` have another shape.
Status CheckLogits(const Tensor& logits, const std::vector<int64_t>& want);

// Compares two logits [B, S, V] row by row. Sequence b has lens[b] tokens, then padding; empty `lens`: S tokens. Either
// may be [B, 1, V], the logits of each sequence's last token alone. kInvalidInput for other shapes, kRefused for none.
Result<StepDifference> DifferenceOf(std::string step, const Tensor& got, const Tensor& want,
                                    const std::vector<int64_t>& lens);

}  // namespace kvshare::host
