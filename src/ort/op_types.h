// Which of an op's types a node has.
#pragma once

#include "ort/custom_op.h"

namespace kvshare::ort {

// kT's and kCache's types as the node's inputs have them; kCache is kT where no such input is there. kInvalidInput
// names the first input whose type keeps the node from every kernel.
Result<OpBinding> BindTypes(const OpRow& row, const NodeInfo& node, const SessionConfig& config,
                            const Backend& backend);

// Undefined for kT, kCache and kAny.
ONNXTensorElementDataType FixedType(SlotType type);

}  // namespace kvshare::ort
