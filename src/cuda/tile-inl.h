// Tiles of K and V on their way into shared memory, in rows of D elements and 16 bytes of padding: eight rows of one
// LdMatrix then lie in eight groups of banks.
#pragma once

#include "cuda/gpu.h"

namespace kvshare::cuda {

// Elements from one row of a tile to the next.
constexpr int TileRow(int D) { return D + 8; }

// kRows rows of kD elements by kThreads threads, of which this is `thread`. Rows at or past `left` and channels at or
// past `d` become zeros; where kWhole there are none, and no lane compares. Pointers step by rows: a multiplication of
// 64 bits a copy would cost as much as the copy.
template <int kD, int kRows, int kThreads, bool kWhole>
GPU_FN void CopyRows(uint16_t* to, const uint16_t* from, int64_t stride, int left, int d, int thread) {
  constexpr int kChunks = kD / 8, kStep = TileRow(kD);
  if constexpr (kThreads >= kChunks) {
    static_assert(kThreads % kChunks == 0 && kRows % (kThreads / kChunks) == 0);
    constexpr int kAtOnce = kThreads / kChunks;  // rows
    const int row = thread / kChunks, channel = thread % kChunks * 8;
    const uint16_t* source = from + row * stride + channel;
    GPU_UNROLL
    for (int i = 0; i < kRows / kAtOnce; ++i) {
      const bool in = kWhole || (row + i * kAtOnce < left && channel < d);
      gpu::CopyAsync(to + (row + i * kAtOnce) * kStep + channel, in ? source : from, in ? 16 : 0);
      source += kAtOnce * stride;
    }
  } else {
    static_assert(kChunks % kThreads == 0);
    const uint16_t* source = from + thread * 8;
    GPU_UNROLL
    for (int row = 0; row < kRows; ++row) {
      GPU_UNROLL
      for (int c = 0; c < kChunks; c += kThreads) {
        const bool in = kWhole || (row < left && (thread + c) * 8 < d);
        gpu::CopyAsync(to + row * kStep + (thread + c) * 8, in ? source + c * 8 : from, in ? 16 : 0);
      }
      source += stride;
    }
  }
}

template <int kD, int kRows, int kThreads>
GPU_FN void CopyTile(uint16_t* to, const uint16_t* from, int64_t stride, int left, int d, int thread) {
  if (left >= kRows && d == kD)
    CopyRows<kD, kRows, kThreads, true>(to, from, stride, left, d, thread);
  else
    CopyRows<kD, kRows, kThreads, false>(to, from, stride, left, d, thread);
}

}  // namespace kvshare::cuda
