// Nodes between a cache and the attention nodes that read it: their output is their input's memory, as it lies there.
//
//   borrowed   Transpose, Reshape                 under the output's shape
//   repeated   Unsqueeze, Expand, Reshape         with as many heads as the cache has, whatever the graph says
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <string_view>

#include "ep/handshake.h"

namespace kvshare::ep {

// `op`: "Transpose" of [B, H, T, D] to [B, T, H, D]; "Reshape" of [B, T, H, D] to [B, T, H * D], or of [B, H, 1, T, D]
// to [B, H, T, D]; "Unsqueeze" of that to [B, H, 1, T, D]; "Expand", which leaves it so.
// A call fails where `handshake` misses a reader of such values.
OrtKernelImpl* MakeAlias(const OrtApi& api, std::string_view op, std::shared_ptr<const Handshake> handshake);

}  // namespace kvshare::ep
