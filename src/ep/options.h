// What a session asks of this provider: provider options, which ONNX Runtime keeps as session entries.
#pragma once

#include <onnxruntime_c_api.h>

#include "ep/claims.h"
#include "kvshare/status.h"

namespace kvshare::ep {

inline constexpr const char* kName = "KvshareExecutionProvider";

struct Options {
  bool off = false;  // claim nothing
  Alignment alignment = Alignment::kAuto;
};

// kInvalidInput for an option that is not known, or a value that is none of the accepted ones.
Result<Options> ReadOptions(const OrtApi& api, const OrtSessionOptions* options);

}  // namespace kvshare::ep
