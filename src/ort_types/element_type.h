// ONNX Runtime's element types and the core's: for the op libraries and for the command line's host alike.
#pragma once

#include <onnxruntime_c_api.h>

#include <optional>

#include "kvshare/shapes.h"

namespace kvshare {

// The core's type of an ONNX tensor element, or nothing for one the core does not know. uint8 is int4 in pairs only
// where an op says so.
inline std::optional<DType> DTypeOf(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return DType::kF32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return DType::kF16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16: return DType::kBF16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: return DType::kF64;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL: return DType::kBool;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32: return DType::kI32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: return DType::kI64;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8: return DType::kI8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN: return DType::kF8E4M3;
    default: return std::nullopt;
  }
}

}  // namespace kvshare
