// Transpose and Reshape between a borrowed cache and the node that reads it: their output is their input's memory, as
// it lies there, under the output's shape.
#pragma once

#include <onnxruntime_c_api.h>

#include <string_view>

namespace kvshare::ep {

// `op`: "Transpose" of [B, H, T, D] to [B, T, H, D], or "Reshape" of [B, T, H, D] to [B, T, H * D].
OrtKernelImpl* MakeAlias(const OrtApi& api, std::string_view op);

}  // namespace kvshare::ep
