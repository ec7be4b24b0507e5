// Where sequences stand and which keys a row sees, from numbers that lie on the device.
#pragma once

#include "cuda/element-inl.h"

namespace kvshare::cuda {

GPU_FN int64_t NumberOf(const DeviceNumbers& numbers, int b) {
  int64_t value = numbers.add;
  if (numbers.data != nullptr)
    value +=
        numbers.is_int64 ? static_cast<const int64_t*>(numbers.data)[b] : static_cast<const int32_t*>(numbers.data)[b];
  return gpu::Min(gpu::Max(value, numbers.least), numbers.most);
}

struct Place {
  int length;        // valid keys, at most T
  int rows;          // query rows that are tokens, at most S
  int64_t position;  // of query row 0
};

GPU_FN Place PlaceOf(const DeviceAttention& call, int b) {
  const int64_t length = NumberOf(call.length, b);
  const int64_t rows = NumberOf(call.query_length, b);
  return {static_cast<int>(gpu::Min<int64_t>(gpu::Max<int64_t>(length, 0), call.T)),
          static_cast<int>(gpu::Min<int64_t>(gpu::Max<int64_t>(rows, 0), call.S)), NumberOf(call.query_position, b)};
}

struct Range {
  int begin;
  int end;
};

// The keys [begin, end) that query row s sees where no mask hides them.
GPU_FN Range RowRange(const DeviceAttention& call, const Place& place, int s) {
  if (s >= place.rows) return {0, 0};
  const int64_t position = place.position + s;
  int64_t begin = 0, end = place.length;
  if (call.window_left >= 0) begin = gpu::Max<int64_t>(position - call.window_left, 0);
  if (call.window_right >= 0) end = gpu::Min(end, position + call.window_right + 1);
  if (begin >= end) return {0, 0};
  return {static_cast<int>(begin), static_cast<int>(end)};
}

// What all rows (token, head of the group) of [first, last] see together. Ranges move right from token to token.
GPU_FN Range TileRange(const DeviceAttention& call, const Place& place, int group, int first, int last) {
  int s = first / group, past = gpu::Min(last / group, place.rows - 1) + 1;
  while (s < past && RowRange(call, place, s).end == 0) ++s;            // they stand before all keys
  while (s < past && RowRange(call, place, past - 1).end == 0) --past;  // or behind
  if (s >= past) return {0, 0};
  return {RowRange(call, place, s).begin, RowRange(call, place, past - 1).end};
}

// What the mask adds to the score of key j: 0, a bias, or -inf.
GPU_FN float MaskAt(const DeviceAttention& call, int b, int64_t first_column, int head, int s, int j) {
  const MaskView& mask = call.mask;
  const int64_t column = first_column + j;
  if (column >= mask.keys) return -gpu::Infinity();
  const int64_t at = b * mask.batch_stride + head * mask.head_stride + s * mask.query_stride + column * mask.key_stride;
  if (mask.type == DType::kBool) return IsSet(mask.data, mask.type, at) ? 0 : -gpu::Infinity();
  return LoadFloat(mask.data, mask.type, at);
}

// The score of the one more key of a smooth softmax.
GPU_FN float SinkScore(const DeviceAttention& call, int head) {
  return call.head_sink != nullptr ? LoadFloat(call.head_sink, call.head_sink_type, head) : 0;
}

}  // namespace kvshare::cuda
