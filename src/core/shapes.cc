#include "kvshare/shapes.h"

namespace kvshare {

const char* NameOf(DType type) {
  switch (type) {
    case DType::kF32: return "f32";
    case DType::kF16: return "f16";
    case DType::kBF16: return "bf16";
    case DType::kF64: return "f64";
    case DType::kBool: return "bool";
    case DType::kI32: return "int32";
    case DType::kI64: return "int64";
    case DType::kI8: return "int8";
    case DType::kI4: return "int4";
    case DType::kF8E4M3: return "float8e4m3fn";
  }
  return "?";
}

}  // namespace kvshare
