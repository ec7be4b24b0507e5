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

// Where a sequence stands. Rows count keys by their index. With a key mask they count the kept keys alone, from 1.
struct Place {
  int length;        // counts of valid keys are below it
  int rows;          // query rows that are tokens, at most S
  int64_t position;  // of query row 0
  // With a key mask, of this sequence; else null.
  const int32_t* counts;  // DeviceAttention::key_counts
  const int32_t* kept;    // DeviceAttention::kept_keys
};

// How many keys are kept up to a key, whether or not it is kept itself.
GPU_FN int KeptUpTo(int count) { return count < 0 ? ~count : count; }

GPU_FN Place PlaceOf(const DeviceAttention& call, int b) {
  const int64_t length = NumberOf(call.length, b);
  const int64_t rows = NumberOf(call.query_length, b);
  const int64_t position = NumberOf(call.query_position, b);
  if (call.key_counts != nullptr) {
    const int32_t* const counts = call.key_counts + static_cast<int64_t>(b) * call.T;
    return {KeptUpTo(counts[call.T - 1]) + 1, call.S, position, counts,
            call.kept_keys + static_cast<int64_t>(b) * call.T};
  }
  return {static_cast<int>(gpu::Min<int64_t>(gpu::Max<int64_t>(length, 0), call.T)),
          static_cast<int>(gpu::Min<int64_t>(gpu::Max<int64_t>(rows, 0), call.S)), position, nullptr, nullptr};
}

struct Range {
  int begin;
  int end;
};

// How rows count key j; below 0 where the key mask hides it.
GPU_FN int CountOf(const DeviceAttention& call, int b, int j) {
  return call.key_counts == nullptr ? j : call.key_counts[static_cast<int64_t>(b) * call.T + j];
}

// The counts [begin, end) of the keys that query row s sees where no mask hides them.
GPU_FN Range RowRange(const DeviceAttention& call, const Place& place, int s) {
  if (s >= place.rows) return {0, 0};
  const bool counted = place.counts != nullptr;
  const int64_t position = counted ? KeptUpTo(place.counts[call.T - call.S + s]) : place.position + s;
  int64_t begin = counted ? 1 : 0, end = place.length;
  if (call.window_left >= 0) begin = gpu::Max<int64_t>(begin, position - call.window_left);
  if (call.window_right >= 0) end = gpu::Min(end, position + call.window_right + 1);
  if (begin >= end) return {0, 0};
  return {static_cast<int>(begin), static_cast<int>(end)};
}

// The keys from the first to the last one whose counts are in `range`.
GPU_FN Range KeysOf(const Place& place, const Range& range) {
  if (place.kept == nullptr || range.end == 0) return range;
  return {place.kept[range.begin - 1], place.kept[range.end - 2] + 1};
}

// The keys that all rows (token, head of the group) of [first, last] see together. Ranges move right from token to
// token.
GPU_FN Range TileRange(const DeviceAttention& call, const Place& place, int group, int first, int last) {
  int s = first / group, past = gpu::Min(last / group, place.rows - 1) + 1;
  while (s < past && RowRange(call, place, s).end == 0) ++s;            // they stand before all keys
  while (s < past && RowRange(call, place, past - 1).end == 0) --past;  // or behind
  if (s >= past) return {0, 0};
  return KeysOf(place, {RowRange(call, place, s).begin, RowRange(call, place, past - 1).end});
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
