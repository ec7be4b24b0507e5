// Per-target: the queries of a unit, rotated and scaled, in the layouts that the score kernels read.
#if defined(KVSHARE_ATTENTION_QUERY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_QUERY_INL_H_
#undef KVSHARE_ATTENTION_QUERY_INL_H_
#else
#define KVSHARE_ATTENTION_QUERY_INL_H_
#endif

#include <algorithm>

#include "attention/columns-inl.h"
#include "attention/kernel_code-inl.h"
#include "attention/place-inl.h"
#include "attention/rotary-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

// Dot products take a bf16 query as it is, since scaling might round it. There the sums are scaled.
inline bool ScalesSums(const Job& job) { return job.plan.key_kernel->products == Products::kDots; }

// A row in f32 becomes what its kernel reads, in place; returns what its sums must be multiplied by.
inline float PackQuery(const Job& job, float* row) {
  return CodeOf(job.plan.key_kernel).pack_query(row, RowStride(job)) *
         (ScalesSums(job) ? static_cast<float>(job.call->spec.scale) : 1.0F);
}

// One query row, rotated and scaled, at `to` [RowStride]; zeros for an idle one.
inline void LoadQuery(const Job& job, const Place& place, const Row& row, Scoring scoring, float* to) {
  const AttentionCall& call = *job.call;
  const F32 df;
  const int64_t stride = RowStride(job);
  if (row.index >= place.rows) {
    std::fill_n(to, stride, 0.0F);
    return;
  }
  const int64_t position = job.sequences[place.b].RotaryOf(call, place.b, row.position);
  LoadRow(call.query, place.b, row.head, row.position, call.norm, call.rotary, position, to);
  // The scales of quantized keys are folded into the query, so that the kernels see codes only.
  const Quant& quant = call.key.quant;
  const int64_t D = call.key.head_size;
  const bool one_scale = quant.scale != nullptr && !quant.per_channel;
  const float* const channel_scale = quant.per_channel ? quant.scale + place.kv_head * D : nullptr;
  if (scoring == Scoring::kF64) {  // rounded once
    for (int64_t d = 0; d < D; ++d)
      to[d] = static_cast<float>(to[d] * call.spec.scale * (quant.per_channel ? channel_scale[d] : quant.scale[0]));
    return;
  }
  const Vec scale =
      hn::Set(df, (ScalesSums(job) ? 1.0F : static_cast<float>(call.spec.scale)) * (one_scale ? quant.scale[0] : 1.0F));
  for (int64_t d = 0; d < stride; d += kLanes) {
    Vec q = hn::Mul(hn::Load(df, to + d), scale);
    if (channel_scale != nullptr) q = hn::Mul(q, LoadN(channel_scale + d, std::min<int64_t>(kLanes, D - d)));
    hn::Store(q, df, to + d);
  }
}

// Packs block `block` of the unit's queries for that way of scoring. False: it is not exact enough for one of them.
inline bool PackRows(const Job& job, const Place& place, const Scratch& scratch, int64_t block, Scoring scoring) {
  const F32 df;
  const TileCode& code = CodeOf(job.plan.key_kernel);
  const int64_t R = job.plan.block_rows;
  const int64_t D = job.call->key.head_size;
  const bool digits = code.may_score != nullptr && scoring == Scoring::kKernel;
  const bool in_f32 = code.may_score_f32 != nullptr && !digits && scoring != Scoring::kF64;
  const int64_t stride = digits ? DigitStride(D) : ScalesSums(job) ? KeyStride(job) : RowStride(job);
  Row row = RowAt(job, place, block * R);
  for (int64_t r = 0; r < R; ++r, row.Next(job, place)) {
    LoadQuery(job, place, row, scoring, scratch.rows);
    if (in_f32 && !code.may_score_f32(scratch.rows, stride)) return false;
    const float factor = scoring == Scoring::kKernel ? PackQuery(job, scratch.rows) : 1.0F;
    if (digits && !code.may_score(factor, D)) return false;
    SetState(job, row, factor, scratch.factors);
    float* packed = scratch.query + block * R * KeyStride(job) + r * kLanes;
    for (int64_t d = 0; d < stride; d += kLanes) hn::Store(hn::Load(df, scratch.rows + d), df, packed + d * R);
  }
  return true;
}

// The same for the fastest way that is exact enough.
inline void PackQueries(const Job& job, const Place& place, const Scratch& scratch, int64_t block) {
  for (const Scoring scoring : {Scoring::kKernel, Scoring::kF32, Scoring::kF64}) {
    // Where a row of digits is forced, its kernels may not serve a head this large.
    const bool digits = job.plan.key_kernel->products == Products::kDigits && scoring == Scoring::kKernel;
    if (digits && job.call->key.head_size > kMostDigitChannels) continue;
    scratch.scoring[block] = scoring;
    if (PackRows(job, place, scratch, block, scoring)) return;
  }
}

// The kernel that scores a block which PackQueries packed.
inline auto ScoreCode(const Job& job, const Scratch& scratch, int64_t block) {
  const TileCode& code = CodeOf(job.plan.key_kernel);
  switch (scratch.scoring[block]) {
    case Scoring::kF32: return code.score_f32;
    case Scoring::kF64: return code.score_f64;
    default: return code.Narrow(job.plan.key_reading).score;
  }
}

// The same as ScoreWide reads them.
inline void PackQueriesWide(const Job& job, const Place& place, const Scratch& scratch, int64_t block) {
  const F32 df;
  const int64_t R = job.plan.block_rows;
  const int64_t stride = KeyStride(job);
  const int64_t row_stride = RowStride(job);
  Row row = RowAt(job, place, block * R);
  for (int64_t r = 0; r < R; r += kQueryRows) {
    for (int64_t i = 0; i < kQueryRows; ++i, row.Next(job, place)) {
      LoadQuery(job, place, row, Scoring::kKernel, scratch.rows + i * row_stride);
      SetState(job, row, PackQuery(job, scratch.rows + i * row_stride), scratch.factors);
    }
    float* packed = scratch.query + block * R * stride + r / kPassRows * kPassRows * stride + r % kPassRows;
    const float* rows = scratch.rows;
    for (int64_t d = 0; d < stride; d += kLanes, rows += kLanes)
      ForEachColumn(hn::Load(df, rows), hn::Load(df, rows + row_stride), hn::Load(df, rows + 2 * row_stride),
                    hn::Load(df, rows + 3 * row_stride), [&](int64_t lane, hn::Vec<Quad> column) HWY_ATTR {
                      hn::Store(column, Quad(), packed + (d + lane) * kPassRows);
                    });
  }
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
