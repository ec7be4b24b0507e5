// Attention, of domain kvshare and in place of ai.onnx's.
#pragma once

#include "ort/custom_op.h"

namespace kvshare::ort {

Result<std::unique_ptr<Kernel>> CreateAttention(const OpBinding& binding, const NodeInfo& node);
Status InferAttention(const InferContext& context);

}  // namespace kvshare::ort
