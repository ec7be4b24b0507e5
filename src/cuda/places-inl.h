// From the rules of a call's lengths to places, where the numbers lie on the device: core/place_sequences.h, run there.
#pragma once

#include "core/place_sequences.h"
#include "cuda/places.h"
#include "cuda/ranges-inl.h"

namespace kvshare::cuda {

inline constexpr int kPlaceThreads = 32;

GPU_FN int64_t Clamped(int64_t number, int64_t least, int64_t most) { return gpu::Min(gpu::Max(number, least), most); }

// A thread takes a sequence.
GPU_KERNEL(kPlaceThreads, 1) PlaceSequencesKernel(GPU_PARAM DeviceRules rules) {
  const int b = static_cast<int>(gpu::Block().x) * kPlaceThreads + gpu::Thread();
  if (b >= rules.B) return;
  const int64_t T = NumberOf(rules.length, b);
  const int64_t rows = NumberOf(rules.rows, b);
  const int64_t before = rules.at_end ? gpu::Max<int64_t>(T - rows, rules.least_before) : NumberOf(rules.before, b);
  int64_t* const place = rules.places + b;
  if (rules.appends) {
    const AppendPlace append = PlaceAppend(rules.cache, T, before, 0);
    place[0] = append.past_length;
    place[rules.B] = append.length;
    place[2 * rules.B] = Clamped(append.skip, 0, append.past_length + rules.S);
  } else {
    const SequencePlace queries = PlaceQueries(rules.cache, T, before, rows, 0);
    place[0] = queries.length;
    place[rules.B] = queries.query_position;
    place[2 * rules.B] = gpu::Max<int64_t>(queries.first_column, 0);
  }
  for (int s = 0; s < rules.S; ++s) rules.rotary[static_cast<int64_t>(b) * rules.S + s] = before + s;
}

inline constexpr int kClearThreads = 256;
inline constexpr size_t kMostClearBlocks = 1024;

// Bytes become 0.
GPU_KERNEL(kClearThreads, 1) ClearKernel(char* data, int64_t bytes) {
  const int64_t step = static_cast<int64_t>(gpu::Grid().x) * kClearThreads;
  for (int64_t i = static_cast<int64_t>(gpu::Block().x) * kClearThreads + gpu::Thread(); i < bytes; i += step)
    data[i] = 0;
}

}  // namespace kvshare::cuda
