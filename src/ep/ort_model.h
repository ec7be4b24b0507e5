// ONNX Runtime's graph as the protobuf that src/graph reads.
#pragma once

#include <onnxruntime_c_api.h>

#include "kvshare/status.h"
#include "onnx/onnx-ml.pb.h"

namespace kvshare::ep {

// Structure, types, bodies, attributes of ints, floats and strings, and the elements of constants up to 64 of them:
// what reading layers and masks takes. Other attributes have their name alone, larger constants no elements.
Result<onnx::ModelProto> ModelOf(const OrtApi& api, const OrtGraph* graph);

}  // namespace kvshare::ep
