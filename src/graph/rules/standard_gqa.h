// Shared by the rules that turn layers into ai.onnx's Attention of opset 25: borrowers of a cache whose lengths
// GroupQueryAttention counts.
#pragma once

#include "graph/rules/standard_lengths.h"

namespace kvshare::graph {

// kAttributeUnknown: a scale below 0, whose square root ai.onnx's Attention takes.
Decline CheckStandardScale(const Node& node);

// The layer attends over the presents that it borrows, of heads of known size, as far as `counts`, a
// GroupQueryAttention, says.
void TurnBorrower(Rewriting& rewriting, const Layer& layer, const Node& counts);

}  // namespace kvshare::graph
