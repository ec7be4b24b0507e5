// Single elements of any type as f32, for kernels that take everything.
#pragma once

#include "core/half.h"
#include "cuda/device_call.h"
#include "cuda/gpu.h"

namespace kvshare::cuda {

inline constexpr float kLog2E = 1.4426950408889634F;

// Codes come without their scale.
GPU_FN float LoadFloat(const void* data, DType type, int64_t index) {
  switch (type) {
    case DType::kF32: return static_cast<const float*>(data)[index];
    case DType::kF16: return gpu::Widen<gpu::Half>(static_cast<const uint16_t*>(data)[index]);
    case DType::kBF16: return gpu::Widen<gpu::BF16>(static_cast<const uint16_t*>(data)[index]);
    case DType::kI8: return static_cast<float>(static_cast<const int8_t*>(data)[index]);
    case DType::kI4:
      return static_cast<float>(((static_cast<const uint8_t*>(data)[index / 2] >> (index % 2 * 4)) & 15) - 8);
    case DType::kF8E4M3: return F32FromF8E4M3(static_cast<const uint8_t*>(data)[index]);
    default: return 0;
  }
}

// Whether element `index` of a bool, int32 or int64 array is not 0.
GPU_FN bool IsSet(const void* data, DType type, int64_t index) {
  if (type == DType::kI64) return static_cast<const int64_t*>(data)[index] != 0;
  if (type == DType::kI32) return static_cast<const int32_t*>(data)[index] != 0;
  return static_cast<const uint8_t*>(data)[index] != 0;
}

// The nearest code, ties to even; NaN becomes 0.
GPU_FN int NearestCode(float value, int low, int high) {
  if (gpu::IsNan(value)) return 0;
  return static_cast<int>(gpu::Min(gpu::Max(gpu::Round(value), static_cast<float>(low)), static_cast<float>(high)));
}

// Rounds once. kI4 is stored by pairs (StorePair).
GPU_FN void StoreFloat(void* data, DType type, int64_t index, float value) {
  switch (type) {
    case DType::kF16: static_cast<uint16_t*>(data)[index] = gpu::Narrow<gpu::Half>(value); break;
    case DType::kBF16: static_cast<uint16_t*>(data)[index] = gpu::Narrow<gpu::BF16>(value); break;
    case DType::kI8: static_cast<int8_t*>(data)[index] = static_cast<int8_t>(NearestCode(value, -128, 127)); break;
    case DType::kF8E4M3: static_cast<uint8_t*>(data)[index] = F8E4M3FromF32(value); break;
    default: static_cast<float*>(data)[index] = value; break;
  }
}

// Two int4 codes into the byte that holds channels `index` (even) and index + 1.
GPU_FN void StorePair(void* data, int64_t index, float low, float high) {
  static_cast<uint8_t*>(data)[index / 2] =
      static_cast<uint8_t>((NearestCode(low, -8, 7) + 8) | ((NearestCode(high, -8, 7) + 8) << 4));
}

// Scale of channel d's code; 1 where there are no codes.
GPU_FN float QuantScale(const float* scale, bool per_channel, int64_t head, int D, int d) {
  if (scale == nullptr) return 1;
  return scale[per_channel ? head * D + d : 0];
}

}  // namespace kvshare::cuda
