// f16 and bf16 as bits, converted one at a time: for the oracle, tails and tests. Kernels convert whole vectors.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kvshare/shapes.h"

namespace kvshare {

inline float F32FromBF16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Round to nearest, ties to even; NaN stays NaN.
inline uint16_t BF16FromF32(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

inline float F32FromF16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1F;
  const uint32_t mantissa = bits & 0x3FF;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
    return sign != 0 ? -magnitude : magnitude;
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000 | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

// Round to nearest, ties to even; overflow becomes infinity.
inline uint16_t F16FromF32(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7E00;
  if (magnitude >= 65520.0F) return sign | 0x7C00;
  if (magnitude < 0x1p-14F) {  // subnormal: an integer count of 2^-24; nearbyint rounds ties to even
    return sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24F));
  }
  const auto m = std::bit_cast<uint32_t>(magnitude);
  const uint32_t rounded = m + 0xFFF + ((m >> 13) & 1);
  return sign | static_cast<uint16_t>((rounded - (112U << 23)) >> 13);
}

// Element `index` of an array of `type` as double; bool and integers included.
inline double LoadElement(const void* data, DType type, int64_t index) {
  switch (type) {
    case DType::kF32: return static_cast<const float*>(data)[index];
    case DType::kF64: return static_cast<const double*>(data)[index];
    case DType::kF16: return F32FromF16(static_cast<const uint16_t*>(data)[index]);
    case DType::kBF16: return F32FromBF16(static_cast<const uint16_t*>(data)[index]);
    case DType::kBool: return static_cast<const uint8_t*>(data)[index] != 0 ? 1 : 0;
    case DType::kI32: return static_cast<const int32_t*>(data)[index];
    case DType::kI64: return static_cast<double>(static_cast<const int64_t*>(data)[index]);
  }
  return 0;
}

// Rounds `value` once to `type` (f32, f16, bf16 or f64) and stores it.
inline void StoreElement(void* data, DType type, int64_t index, double value) {
  switch (type) {
    case DType::kF64: static_cast<double*>(data)[index] = value; break;
    case DType::kF16: static_cast<uint16_t*>(data)[index] = F16FromF32(static_cast<float>(value)); break;
    case DType::kBF16: static_cast<uint16_t*>(data)[index] = BF16FromF32(static_cast<float>(value)); break;
    default: static_cast<float*>(data)[index] = static_cast<float>(value); break;
  }
}

// Address of element `index` of an array of `type`.
inline const void* At(const void* data, DType type, int64_t index) {
  return static_cast<const std::byte*>(data) + index * static_cast<int64_t>(SizeOf(type));
}
inline void* At(void* data, DType type, int64_t index) {
  return static_cast<std::byte*>(data) + index * static_cast<int64_t>(SizeOf(type));
}

}  // namespace kvshare
