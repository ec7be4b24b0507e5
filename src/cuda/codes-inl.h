// Tags for the element types of caches, and codes as numbers: four bytes of a tile become numbers at a time, in
// registers, without their scales.
#pragma once

#include <type_traits>

#include "cuda/device_call.h"
#include "cuda/gpu.h"

namespace kvshare::cuda {

struct I8 {};
struct I4 {};
struct F8E4M3 {};

template <typename Element>
inline constexpr int kBitsOf = 16;
template <>
inline constexpr int kBitsOf<float> = 32;
template <>
inline constexpr int kBitsOf<I8> = 8;
template <>
inline constexpr int kBitsOf<F8E4M3> = 8;
template <>
inline constexpr int kBitsOf<I4> = 4;

// Element `index` of a word. A small integer beside 2^23 is the lowest bits of a float.
template <typename Code>
GPU_FN float CodeAt(uint32_t word, int index) {
  constexpr uint32_t kTwo23 = 0x4B000000;
  if constexpr (kBitsOf<Code> == 16) {
    return gpu::Widen<Code>(static_cast<uint16_t>(word >> (16 * index)));
  } else if constexpr (std::is_same_v<Code, I8>) {
    return gpu::FloatOf(kTwo23 | (((word >> (8 * index)) & 0xFF) ^ 0x80)) - (0x1p23F + 128);
  } else if constexpr (std::is_same_v<Code, I4>) {
    return gpu::FloatOf(kTwo23 | ((word >> (4 * index)) & 0xF)) - (0x1p23F + 8);
  } else {
    static_assert(std::is_same_v<Code, F8E4M3>);
    return CodeAt<gpu::Half>(gpu::WidenE4M3<gpu::Half>(word, index & ~1, index | 1), index % 2);
  }
}

// Two codes of a word, `first` in the lower half. Both 16-bit types hold every code.
template <typename Element, typename Code>
GPU_FN uint32_t CodePair(uint32_t word, int first, int second) {
  if constexpr (std::is_same_v<Code, F8E4M3>)
    return gpu::WidenE4M3<Element>(word, first, second);
  else
    return gpu::Pack2<Element>(CodeAt<Code>(word, first), CodeAt<Code>(word, second));
}

// Channels [channel, channel + 4) of a row of a tile in shared memory; `channel` is a multiple of four.
template <typename Code>
GPU_FN void LoadFour(float (&four)[4], const uint16_t* row, int channel) {
  constexpr int kBits = kBitsOf<Code>;
  if constexpr (kBits == 32) {
    gpu::LoadShared(four, reinterpret_cast<const float*>(row) + channel);
  } else {
    uint32_t words[2];
    if constexpr (kBits == 4) {
      words[0] = row[channel / 4];
    } else {
      GPU_UNROLL
      for (int i = 0; i < kBits / 8; ++i) words[i] = reinterpret_cast<const uint32_t*>(row)[channel / (32 / kBits) + i];
    }
    GPU_UNROLL
    for (int i = 0; i < 4; ++i) four[i] = CodeAt<Code>(words[i * kBits / 32], i % (32 / kBits));
  }
}

// The scales of K's codes in the scores of a KV head. A channel's scale, divided by the largest, goes into the query:
// so a query of 16 bits neither overflows nor vanishes, however small scales are. All lanes take part.
struct KeyScale {
  float factor = 1;                 // of every score
  const float* channels = nullptr;  // [D], where each channel has its own

  GPU_FN KeyScale(const DeviceAttention& call, int kv_head) {
    if (call.key.quant_scale == nullptr) return;
    factor = call.key.quant_scale[0];
    if (!call.key.quant_per_channel) return;
    channels = call.key.quant_scale + static_cast<int64_t>(kv_head) * call.D;
    float most = 0;
    for (int d = gpu::Thread() % 32; d < call.D; d += 32) most = gpu::Max(most, gpu::Max(channels[d], -channels[d]));
    for (int mask = 1; mask < 32; mask *= 2) most = gpu::Max(most, gpu::ShuffleXor(most, mask));
    factor = most > 0 ? most : 1.0F;
  }
  // What the query's channel is multiplied by.
  GPU_FN float Of(int channel) const { return channels[channel] / factor; }
};

}  // namespace kvshare::cuda
