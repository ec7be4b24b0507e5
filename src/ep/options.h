// What a session asks of this provider: provider options, which ONNX Runtime keeps as session entries.
#pragma once

#include <onnxruntime_c_api.h>

#include "ep/claims.h"
#include "kvshare/status.h"

namespace kvshare::ep {

enum class Mode {
  kFuse,   // attention nodes, and what they read in a shape of their own: key masks for masks, caches as they lie
  kNodes,  // attention nodes
  kOff,    // nothing
};

struct Options {
  Mode mode = Mode::kFuse;
  Alignment alignment = Alignment::kAuto;
  bool makes_context = false;  // the session writes an EPContext model, which has no place for a compiled node
  bool sees_parts = false;     // the session assigns nodes by name, and shows each provider only what is left for it
};

// kInvalidInput for an option that is not known, or a value that is none of the accepted ones.
Result<Options> ReadOptions(const OrtApi& api, const OrtSessionOptions* options);

}  // namespace kvshare::ep
