// Everything a call can say, element by element: any head size, any mix of types, quantized caches, masks, key masks,
// scores. A block takes one query row; a thread takes a key while scores are computed and channels while values are
// summed. K and V are read once a query head.
#pragma once

#include "cuda/rows-inl.h"
#include "cuda/softmax-inl.h"

namespace kvshare::cuda {

inline constexpr int kPlainThreads = 128;  // and keys of a turn

// Shared memory of head sizes D and Dv: the query, the weights of a turn, the sums.
constexpr size_t PlainSharedBytes(int64_t D, int64_t Dv) {
  return sizeof(float) * (static_cast<size_t>(D) + kPlainThreads + static_cast<size_t>(Dv));
}

struct PlainRow {
  int b, head, kv_head, s;
  int64_t first_column;
  Place place;
  Range range;         // of counts
  int64_t scores_row;  // first element of its row of call.scores

  GPU_FN explicit PlainRow(const DeviceAttention& call) {
    const auto index = static_cast<int64_t>(gpu::Block().x);
    s = static_cast<int>(index % call.S);
    head = static_cast<int>(index / call.S % call.Hq);
    b = static_cast<int>(index / call.S / call.Hq);
    kv_head = head / (call.Hq / call.Hkv);
    first_column = NumberOf(call.first_column, b);
    place = PlaceOf(call, b);
    range = RowRange(call, place, s);
    scores_row = index * call.scores.keys;
  }
  GPU_FN bool Sees(const DeviceAttention& call, int j) const {
    const int count = CountOf(call, b, j);
    return count >= range.begin && count < range.end;
  }
  GPU_FN void Show(const DeviceAttention& call, ScoreStage stage, int64_t column, float value) const {
    if (call.scores.data == nullptr || call.scores.stage != stage || column >= call.scores.keys) return;
    StoreFloat(call.scores.data, call.scores.type, scores_row + column, value);
  }
};

GPU_FN float PlainDot(const DeviceAttention& call, const PlainRow& row, const float* query, int j) {
  const DeviceHeads& key = call.key;
  const int64_t offset = row.b * key.batch_stride + row.kv_head * key.head_stride + j * key.token_stride;
  float dot = 0;
  for (int d = 0; d < call.D; ++d)
    dot += query[d] * LoadFloat(key.data, key.type, offset + d) *
           QuantScale(key.quant_scale, key.quant_per_channel, row.kv_head, call.D, d);
  return dot;
}

// The score of key j, -inf where it is hidden; shows what it is on its way.
GPU_FN float PlainScore(const DeviceAttention& call, const PlainRow& row, const float* query, int j) {
  const int64_t column = row.first_column + j;
  const bool seen = row.Sees(call, j);
  float bias = -gpu::Infinity();
  if (seen) bias = call.mask.data != nullptr ? MaskAt(call, row.b, row.first_column, row.head, row.s, j) : 0;
  const bool hidden = bias == -gpu::Infinity();
  if (seen && hidden) row.Show(call, ScoreStage::kMasked, column, bias);
  const bool of_every_key = call.scores.stage == ScoreStage::kRaw || call.scores.stage == ScoreStage::kSoftcapped;
  if (hidden && !(call.scores.data != nullptr && of_every_key)) return bias;
  float x = PlainDot(call, row, query, j) * call.scale;
  row.Show(call, ScoreStage::kRaw, column, x);
  if (call.softcap > 0) x = call.softcap * gpu::Tanh(x / call.softcap);
  row.Show(call, ScoreStage::kSoftcapped, column, x);
  if (hidden) return bias;
  row.Show(call, ScoreStage::kMasked, column, x + bias);
  return x + bias;
}

GPU_KERNEL(kPlainThreads, 1) PlainKernel(GPU_PARAM DeviceAttention call) {
  float* const query = reinterpret_cast<float*>(gpu::Shared());
  float* const weights = query + call.D;
  float* const sums = weights + kPlainThreads;
  const int thread = gpu::Thread();
  const PlainRow row(call);
  if (thread < 32) {
    const int64_t position =
        row.s < row.place.rows ? RotaryPosition(call.query_row, row.b, row.s, call.S, row.place.position) : 0;
    LoadRow(query, call.query,
            row.b * call.query.batch_stride + row.head * call.query.head_stride + row.s * call.query.token_stride,
            call.D, call.query_row, position);
  }
  for (int d = thread; d < call.Dv; d += kPlainThreads) sums[d] = 0;
  for (int64_t column = thread; column < call.scores.keys; column += kPlainThreads) {
    row.Show(call, ScoreStage::kMasked, column, call.scores.outside);
    row.Show(call, ScoreStage::kWeights, column, 0);
  }
  // The query is here, and what later scores replace.
  gpu::SyncThreads();
  const Range keys = call.scores.data != nullptr ? Range{0, call.T} : KeysOf(row.place, row.range);
  const int begin = keys.begin, end = keys.end;
  float maximum = -gpu::Infinity(), sum = 0;
  for (int first = begin; first < end; first += kPlainThreads) {
    const int count = gpu::Min(end - first, kPlainThreads);
    const float score = thread < count ? PlainScore(call, row, query, first + thread) * kLog2E : -gpu::Infinity();
    weights[thread] = score;
    // All scores are here.
    gpu::SyncThreads();
    const float before = maximum;
    for (int i = 0; i < count; ++i) maximum = gpu::Max(weights[i], maximum);
    const float base = BaseOf(maximum), fade = gpu::Exp2(before - base);
    // Nobody reads scores any more.
    gpu::SyncThreads();
    weights[thread] = gpu::Exp2(score - base);
    // All weights are here.
    gpu::SyncThreads();
    sum *= fade;
    for (int i = 0; i < count; ++i) sum += weights[i];
    for (int d = thread; d < call.Dv; d += kPlainThreads) {
      const DeviceHeads& value = call.value;
      const int64_t offset = row.b * value.batch_stride + row.kv_head * value.head_stride + d;
      float mine = 0;
      for (int i = 0; i < count; ++i)
        if (weights[i] != 0)
          mine += weights[i] * LoadFloat(value.data, value.type, offset + (first + i) * value.token_stride);
      sums[d] = sums[d] * fade + mine * QuantScale(value.quant_scale, value.quant_per_channel, row.kv_head, call.Dv, d);
    }
    // Nobody reads weights any more.
    gpu::SyncThreads();
  }
  const float factor = OutputFactor(call, row.head, maximum, sum);
  const DeviceOutput& to = call.output;
  const int64_t offset = row.b * to.batch_stride + row.head * to.head_stride + row.s * to.token_stride;
  for (int d = thread; d < call.Dv; d += kPlainThreads) StoreFloat(to.data, to.type, offset + d, sums[d] * factor);
  if (call.scores.data == nullptr || call.scores.stage != ScoreStage::kWeights) return;
  for (int j = begin + thread; j < end; j += kPlainThreads) {
    const float score = PlainScore(call, row, query, j) * kLog2E;
    if (score != -gpu::Infinity())
      row.Show(call, ScoreStage::kWeights, row.first_column + j, gpu::Exp2(score - BaseOf(maximum)) * factor);
  }
}

}  // namespace kvshare::cuda
