// f16, bf16 and the codes of quantized caches as bits, converted one at a time: for the oracle, tails and tests.
// Kernels convert whole vectors.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kvshare/shapes.h"

#if defined(__CUDACC__)
#define KVSHARE_HOST_DEVICE __host__ __device__
#else
#define KVSHARE_HOST_DEVICE
#endif

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

// float8 e4m3fn: no infinities, 0x7F is NaN.
KVSHARE_HOST_DEVICE inline float F32FromF8E4M3(uint8_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80) << 24;
  const uint32_t exponent = (bits >> 3) & 0xF;
  const uint32_t mantissa = bits & 7;
  if ((bits & 0x7F) == 0x7F) return std::bit_cast<float>(sign | 0x7FC00000);
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-9
    const float magnitude = static_cast<float>(mantissa) * 0x1p-9F;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 120) << 23) | (mantissa << 20));
}

// Round to nearest, ties to even; beyond the largest, 448, saturates; NaN stays NaN.
KVSHARE_HOST_DEVICE inline uint8_t F8E4M3FromF32(float value) {
  const auto sign = static_cast<uint8_t>(std::signbit(value) ? 0x80 : 0);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7F;
  if (magnitude >= 448.0F) return sign | 0x7E;
  if (magnitude < 0x1p-6F) return sign | static_cast<uint8_t>(std::nearbyint(magnitude * 0x1p9F));
  const auto m = std::bit_cast<uint32_t>(magnitude);
  const uint32_t rounded = m + 0x7FFFF + ((m >> 20) & 1);
  return sign | static_cast<uint8_t>((rounded - (120U << 23)) >> 20);
}

// An integer code of a quantized cache: nearest, ties to even, clamped; NaN becomes 0.
inline int IntegerCode(double value, int low, int high) {
  if (std::isnan(value)) return 0;
  return static_cast<int>(std::clamp(std::nearbyint(value), static_cast<double>(low), static_cast<double>(high)));
}

// Element `index` of an array of `type` as double; bool and integers included. Codes come without their scale.
inline double LoadElement(const void* data, DType type, int64_t index) {
  switch (type) {
    case DType::kF32: return static_cast<const float*>(data)[index];
    case DType::kF64: return static_cast<const double*>(data)[index];
    case DType::kF16: return F32FromF16(static_cast<const uint16_t*>(data)[index]);
    case DType::kBF16: return F32FromBF16(static_cast<const uint16_t*>(data)[index]);
    case DType::kBool: return static_cast<const uint8_t*>(data)[index] != 0 ? 1 : 0;
    case DType::kI32: return static_cast<const int32_t*>(data)[index];
    case DType::kI64: return static_cast<double>(static_cast<const int64_t*>(data)[index]);
    case DType::kI8: return static_cast<const int8_t*>(data)[index];
    case DType::kI4: return ((static_cast<const uint8_t*>(data)[index / 2] >> (index % 2 * 4)) & 15) - 8;
    case DType::kF8E4M3: return F32FromF8E4M3(static_cast<const uint8_t*>(data)[index]);
  }
  return 0;
}

// Rounds `value` once to `type` (a float or a code) and stores it.
inline void StoreElement(void* data, DType type, int64_t index, double value) {
  switch (type) {
    case DType::kF64: static_cast<double*>(data)[index] = value; break;
    case DType::kF16: static_cast<uint16_t*>(data)[index] = F16FromF32(static_cast<float>(value)); break;
    case DType::kBF16: static_cast<uint16_t*>(data)[index] = BF16FromF32(static_cast<float>(value)); break;
    case DType::kI8: static_cast<int8_t*>(data)[index] = static_cast<int8_t>(IntegerCode(value, -128, 127)); break;
    case DType::kI4: {
      uint8_t& pair = static_cast<uint8_t*>(data)[index / 2];
      const int shift = static_cast<int>(index % 2 * 4);
      pair = static_cast<uint8_t>((pair & ~(15 << shift)) | ((IntegerCode(value, -8, 7) + 8) << shift));
      break;
    }
    case DType::kF8E4M3: static_cast<uint8_t*>(data)[index] = F8E4M3FromF32(static_cast<float>(value)); break;
    default: static_cast<float*>(data)[index] = static_cast<float>(value); break;
  }
}

// Address of element `index` of an array of `type`; even where the type is kI4.
inline const void* At(const void* data, DType type, int64_t index) {
  return static_cast<const std::byte*>(data) + BytesOf(type, index);
}
inline void* At(void* data, DType type, int64_t index) { return static_cast<std::byte*>(data) + BytesOf(type, index); }

}  // namespace kvshare
