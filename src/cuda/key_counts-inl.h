// A key mask before attention: which keys are kept, and how many up to each.
#pragma once

#include "cuda/element-inl.h"

namespace kvshare::cuda {

inline constexpr int kCountThreads = 512;

// A block takes a sequence, a warp some of its keys, 32 at a time.
GPU_KERNEL(kCountThreads, 1) CountKeysKernel(GPU_PARAM DeviceAttention call) {
  auto* const kept = reinterpret_cast<int32_t*>(gpu::Shared());  // by each warp
  const int lane = gpu::Thread() % 32, warp = gpu::Thread() / 32;
  const int64_t b = gpu::Block().x;
  const int share = (call.T + kCountThreads - 1) / kCountThreads * 32;
  const int begin = warp * share, end = gpu::Min(begin + share, call.T);
  const auto keeps = [&](int j) {
    return j < end && IsSet(call.key_mask, call.key_mask_type, b * call.key_mask_stride + j);
  };
  int count = 0;
  for (int first = begin; first < end; first += 32) count += gpu::CountBits(gpu::Ballot(keeps(first + lane)));
  if (lane == 0) kept[warp] = count;
  // All warps' counts are here.
  gpu::SyncThreads();
  count = 0;
  for (int before = 0; before < warp; ++before) count += kept[before];
  for (int first = begin; first < end; first += 32) {
    const int j = first + lane;
    const bool mine = keeps(j);
    const uint32_t all = gpu::Ballot(mine);
    const int up_to = count + gpu::CountBits(all & (~0U >> (31 - lane)));
    if (j < end) call.key_counts[b * call.T + j] = mine ? up_to : ~up_to;
    if (mine) call.kept_keys[b * call.T + up_to - 1] = j;
    count += gpu::CountBits(all);
  }
}

}  // namespace kvshare::cuda
