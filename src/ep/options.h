// What a session asks of this provider. ONNX Runtime keeps provider options as session entries.
#pragma once

#include <onnxruntime_c_api.h>

#include "kvshare/provider.h"
#include "kvshare/status.h"

namespace kvshare::ep {

struct Options {
  ProviderOptions provider;
  bool makes_context = false;  // the session writes an EPContext model, which has no place for a compiled node
  bool sees_parts = false;     // the session assigns nodes by name, and shows each provider only what is left for it
};

// kInvalidInput for an option that is not known, or a value that is none of the accepted ones.
Result<Options> ReadOptions(const OrtApi& api, const OrtSessionOptions* options);

}  // namespace kvshare::ep
