// The splits of a row tile become one: a block a row, a thread a few channels.
#pragma once

#include "cuda/kernel_table.h"
#include "cuda/softmax-inl.h"

namespace kvshare::cuda {

inline constexpr int kMergeThreads = 128;

GPU_KERNEL(kMergeThreads, 1) MergeSplitsKernel(GPU_PARAM DeviceAttention call, GPU_PARAM AttendGrid grid) {
  const int group = call.Hq / call.Hkv, rows = group * call.S;
  const auto r = static_cast<int>(gpu::Block().x % static_cast<unsigned>(rows));
  const auto kv_head = static_cast<int>(gpu::Block().x / static_cast<unsigned>(rows));  // of all sequences
  const int64_t tile = static_cast<int64_t>(kv_head) * grid.row_tiles + r / grid.rows;
  const int64_t first = tile * grid.splits * grid.rows + r % grid.rows;  // slot of split 0
  const int b = kv_head / call.Hkv, head = kv_head % call.Hkv * group + r % group;
  float top = -gpu::Infinity();
  for (int split = 0; split < grid.splits; ++split)
    top = gpu::Max(top, grid.partial_softmax[2 * (first + split * grid.rows)]);
  float weights = 0;
  for (int split = 0; split < grid.splits; ++split) {
    const int64_t slot = first + split * grid.rows;
    weights += gpu::Exp2(grid.partial_softmax[2 * slot] - BaseOf(top)) * grid.partial_softmax[2 * slot + 1];
  }
  const float factor = OutputFactor(call, head, top, weights);
  const DeviceOutput& to = call.output;
  const int64_t row = b * to.batch_stride + head * to.head_stride + r / group * to.token_stride;
  for (int d = gpu::Thread(); d < call.Dv; d += kMergeThreads) {
    float sum = 0;
    for (int split = 0; split < grid.splits; ++split) {
      const int64_t slot = first + split * grid.rows;
      sum += gpu::Exp2(grid.partial_softmax[2 * slot] - BaseOf(top)) * grid.partial_sums[slot * grid.D + d];
    }
    StoreFloat(to.data, to.type, row + d, sum * factor);
  }
}

}  // namespace kvshare::cuda
