// GroupQueryAttention, of domain kvshare and in place of com.microsoft's.
#pragma once

#include "ort/custom_op.h"

namespace kvshare::ort {

Result<std::unique_ptr<Kernel>> CreateGqa(const OpBinding& binding, const NodeInfo& node);
Status InferGqa(const InferContext& context);

}  // namespace kvshare::ort
