// Per-target: the queries of a unit, rotated and scaled, in the layouts that the score kernels read.
#if defined(KVSHARE_ATTENTION_QUERY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_QUERY_INL_H_
#undef KVSHARE_ATTENTION_QUERY_INL_H_
#else
#define KVSHARE_ATTENTION_QUERY_INL_H_
#endif

#include <algorithm>

#include "attention/columns-inl.h"
#include "attention/place-inl.h"
#include "attention/rotary-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

// One query row, rotated and scaled; zeros for an idle one.
inline void LoadQuery(const Job& job, const Place& place, int64_t row, float* to) {
  const AttentionCall& call = *job.call;
  const F32 df;
  const int64_t stride = KeyStride(job);
  if (row >= place.rows) {
    std::fill_n(to, stride, 0.0F);
    return;
  }
  const int64_t s = place.PositionOf(job, row);
  const int64_t position =
      call.rotary_positions != nullptr
          ? call.rotary_positions[place.b * call.query.tokens + s]
          : (call.positions.query_position != nullptr ? call.positions.query_position[place.b] : 0) + s;
  LoadRow(call.query, place.b, place.HeadOf(job, row), s, call.norm, call.rotary, position, to);
  // The scales of quantized keys are folded into the query, so that the kernels see codes only.
  const Quant& quant = call.key.quant;
  const int64_t D = call.key.head_size;
  const bool one_scale = quant.scale != nullptr && !quant.per_channel;
  const Vec scale = hn::Set(df, static_cast<float>(call.spec.scale) * (one_scale ? quant.scale[0] : 1.0F));
  const float* const channel_scale = quant.per_channel ? quant.scale + place.kv_head * D : nullptr;
  for (int64_t d = 0; d < stride; d += kLanes) {
    Vec q = hn::Mul(hn::Load(df, to + d), scale);
    if (channel_scale != nullptr) q = hn::Mul(q, hn::LoadN(df, channel_scale + d, std::min<int64_t>(kLanes, D - d)));
    hn::Store(q, df, to + d);
  }
}

// Block `block` of the unit's queries as ScoreTile reads them.
inline void PackQueries(const Job& job, const Place& place, const Scratch& scratch, int64_t block) {
  const F32 df;
  const int64_t R = job.plan.block_rows;
  const int64_t stride = KeyStride(job);
  for (int64_t r = 0; r < R; ++r) {
    LoadQuery(job, place, block * R + r, scratch.rows);
    float* packed = scratch.query + block * R * stride + r * kLanes;
    for (int64_t d = 0; d < stride; d += kLanes) hn::Store(hn::Load(df, scratch.rows + d), df, packed + d * R);
  }
}

// The same as ScoreWide reads them.
inline void PackQueriesWide(const Job& job, const Place& place, const Scratch& scratch, int64_t block) {
  const F32 df;
  const int64_t R = job.plan.block_rows;
  const int64_t stride = KeyStride(job);
  for (int64_t r = 0; r < R; r += kQueryRows) {
    for (int64_t i = 0; i < kQueryRows; ++i) LoadQuery(job, place, block * R + r + i, scratch.rows + i * stride);
    float* packed = scratch.query + block * R * stride + r / kPassRows * kPassRows * stride + r % kPassRows;
    const float* rows = scratch.rows;
    for (int64_t d = 0; d < stride; d += kLanes, rows += kLanes)
      ForEachColumn(hn::Load(df, rows), hn::Load(df, rows + stride), hn::Load(df, rows + 2 * stride),
                    hn::Load(df, rows + 3 * stride), [&](int64_t lane, hn::Vec<Quad> column) HWY_ATTR {
                      hn::Store(column, Quad(), packed + (d + lane) * kPassRows);
                    });
  }
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
