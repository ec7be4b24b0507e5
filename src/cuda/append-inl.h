// New tokens on their way into a cache, and the rows that stay or move with them.
#pragma once

#include "cuda/rows-inl.h"

namespace kvshare::cuda {

// Bytes [0, bytes) of a row; 16 at a time where both addresses allow. A warp takes the row.
GPU_FN void CopyRowBytes(char* to, const char* from, int64_t bytes) {
  const int lane = gpu::Thread() % 32;
  const bool aligned = (reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 == 0;
  const int64_t whole = aligned ? bytes / 16 : 0;
  struct alignas(16) Sixteen {
    uint32_t words[4];
  };
  for (int64_t i = lane; i < whole; i += 32)
    reinterpret_cast<Sixteen*>(to)[i] = reinterpret_cast<const Sixteen*>(from)[i];
  for (int64_t i = 16 * whole + lane; i < bytes; i += 32) to[i] = from[i];
}

GPU_FN int64_t RowBytes(DType type, int64_t elements) {
  switch (type) {
    case DType::kF32: return 4 * elements;
    case DType::kF16:
    case DType::kBF16: return 2 * elements;
    case DType::kI4: return (elements + 1) / 2;
    default: return elements;
  }
}

// Past and present are one memory whose first rows go: row t becomes row t + skip. A thread moves its own bytes of
// every row, in order, so nobody waits for another.
GPU_KERNEL(kRowWarps * 32, 1) DropRowsKernel(GPU_PARAM DeviceAppend call) {
  const int64_t skip = NumberOf(call.skip, static_cast<int>(gpu::Block().z));
  const int64_t stay = gpu::Min(NumberOf(call.past_length, static_cast<int>(gpu::Block().z)), call.past_tokens) - skip;
  const int64_t byte = static_cast<int64_t>(gpu::Block().x) * gpu::Threads() + gpu::Thread();
  if (skip == 0 || byte >= RowBytes(call.present.type, call.D)) return;
  const int64_t row = RowBytes(call.present.type, call.present.token_stride);
  char* const head = static_cast<char*>(call.present.data) +
                     RowBytes(call.present.type,
                              gpu::Block().z * call.present.batch_stride + gpu::Block().y * call.present.head_stride) +
                     byte;
  for (int64_t t = 0; t < gpu::Min(stay, call.present_tokens); ++t) head[t * row] = head[(t + skip) * row];
}

// A warp takes row t of present: new, of past, or zero. In place only new rows are written.
GPU_KERNEL(kRowWarps * 32, 1) AppendRowsKernel(GPU_PARAM DeviceAppend call) {
  const int warp = gpu::Thread() / 32, b = static_cast<int>(gpu::Block().z), head = static_cast<int>(gpu::Block().y);
  const int64_t past = gpu::Min(NumberOf(call.past_length, b), call.past_tokens);
  const int64_t skip = gpu::Min(NumberOf(call.skip, b), past + call.S);
  const int64_t length = gpu::Min(gpu::Min(NumberOf(call.length, b), past + call.S - skip), call.present_tokens);
  const int64_t index = static_cast<int64_t>(gpu::Block().x) * kRowWarps + warp;
  const int64_t t = call.in_place ? past - skip + index : index;
  const int64_t last = call.in_place ? gpu::Min(length, past - skip + call.S) : call.present_tokens;
  if (t < 0 || t >= last) return;
  const DeviceOutput& to = call.present;
  const int64_t offset = b * to.batch_stride + head * to.head_stride + t * to.token_stride;
  char* const bytes = static_cast<char*>(to.data) + RowBytes(to.type, offset);
  const int64_t row_bytes = RowBytes(to.type, call.D);
  if (t >= length) {
    for (int64_t i = gpu::Thread() % 32; i < row_bytes; i += 32) bytes[i] = 0;
    return;
  }
  const int64_t source = t + skip;  // among past and new rows
  if (source < past) {
    const int64_t from = b * call.past.batch_stride + head * call.past.head_stride + source * call.past.token_stride;
    CopyRowBytes(bytes, static_cast<const char*>(call.past.data) + RowBytes(to.type, from), row_bytes);
    return;
  }
  float* const row = reinterpret_cast<float*>(gpu::Shared()) + warp * call.D;
  const int s = static_cast<int>(source - past);
  const DeviceHeads& fresh = call.fresh;
  LoadRow(
      row, fresh, b * fresh.batch_stride + head * fresh.head_stride + s * fresh.token_stride, call.D, call.fresh_row,
      call.fresh_row.cos == nullptr ? 0 : RotaryPosition(call.fresh_row, b, s, call.S, NumberOf(call.rotary_start, b)));
  StoreRow(to, offset, head, call.D, row);
}

}  // namespace kvshare::cuda
