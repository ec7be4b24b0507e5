// Rows of channels on their way: normalized, rotated, rounded. One warp takes a row.
#pragma once

#include "cuda/kernel_table.h"
#include "cuda/ranges-inl.h"

namespace kvshare::cuda {

GPU_FN float WarpSum(float v) {
  for (int mask = 1; mask < 32; mask *= 2) v += gpu::ShuffleXor(v, mask);
  return v;
}

// Row of the tables for `token`, whose sequence has token 0 at `first`.
GPU_FN int64_t RotaryPosition(const DeviceRow& how, int b, int token, int tokens, int64_t first) {
  int64_t position = first + token;
  if (how.positions != nullptr)
    position = how.same_start ? how.positions[0] + token : how.positions[static_cast<int64_t>(b) * tokens + token];
  return gpu::Min(gpu::Max<int64_t>(position, 0), how.max_positions - 1);
}

// Channels [0, D) of the row at `offset` into row[D] of shared memory, normalized, then rotated for `position`; all
// lanes see all of it.
GPU_FN void LoadRow(float* row, const DeviceHeads& from, int64_t offset, int D, const DeviceRow& how,
                    int64_t position) {
  const int lane = gpu::Thread() % 32;
  float squares = 0;
  for (int d = lane; d < D; d += 32) {
    row[d] = LoadFloat(from.data, from.type, offset + d);
    squares += row[d] * row[d];
  }
  if (how.norm_weight != nullptr) {
    const float factor = gpu::Rsqrt(WarpSum(squares) / static_cast<float>(D) + how.norm_epsilon);
    for (int d = lane; d < D; d += 32) row[d] *= factor * LoadFloat(how.norm_weight, how.norm_type, d);
  }
  // Pairs may be of two lanes' channels.
  gpu::SyncWarp();
  if (how.cos == nullptr) return;
  for (int i = lane; i < how.half; i += 32) {
    const int first = how.interleaved ? 2 * i : i;
    const int second = how.interleaved ? 2 * i + 1 : i + how.half;
    const float cos = LoadFloat(how.cos, how.rotary_type, position * how.half + i);
    const float sin = LoadFloat(how.sin, how.rotary_type, position * how.half + i);
    const float x = row[first], y = row[second];
    row[first] = x * cos - y * sin;
    row[second] = y * cos + x * sin;
  }
  // All lanes may read all channels.
  gpu::SyncWarp();
}

// The row at `offset` of `to` from row[D] in shared memory.
GPU_FN void StoreRow(const DeviceOutput& to, int64_t offset, int head, int D, const float* row) {
  const int lane = gpu::Thread() % 32;
  const auto coded = [&](int d) { return row[d] / QuantScale(to.quant_scale, to.quant_per_channel, head, D, d); };
  if (to.type == DType::kI4) {
    for (int d = 2 * lane; d < D; d += 64) StorePair(to.data, offset + d, coded(d), d + 1 < D ? coded(d + 1) : -8.0F);
    return;
  }
  for (int d = lane; d < D; d += 32)
    StoreFloat(to.data, to.type, offset + d, to.quant_scale == nullptr ? row[d] : coded(d));
}

inline constexpr int kRowWarps = 4;

// Queries as `to` has them, for kernels that read them as they are. A warp takes row (b, head, s).
GPU_KERNEL(kRowWarps * 32, 1) PrepareQueryKernel(GPU_PARAM DeviceAttention call, GPU_PARAM DeviceOutput to) {
  const int warp = gpu::Thread() / 32;
  const int64_t index = static_cast<int64_t>(gpu::Block().x) * kRowWarps + warp;
  if (index >= static_cast<int64_t>(call.B) * call.Hq * call.S) return;
  float* const row = reinterpret_cast<float*>(gpu::Shared()) + warp * call.D;
  const int s = static_cast<int>(index % call.S), head = static_cast<int>(index / call.S % call.Hq);
  const int b = static_cast<int>(index / call.S / call.Hq);
  const Place place = PlaceOf(call, b);
  const DeviceHeads& query = call.query;
  const int64_t position = s < place.rows ? RotaryPosition(call.query_row, b, s, call.S, place.position) : 0;
  LoadRow(row, query, b * query.batch_stride + head * query.head_stride + s * query.token_stride, call.D,
          call.query_row, position);
  StoreRow(to, b * to.batch_stride + head * to.head_stride + s * to.token_stride, head, call.D, row);
}

}  // namespace kvshare::cuda
