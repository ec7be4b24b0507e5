// Per-target: the sum of weighted values where a tile is read as several streams (Reading::kSpread). The keys of a step
// lie a part of the tile apart, and the hardware prefetcher follows every stream. On Zen 3 one stream brings 15 GB/s,
// four bring 23, and software prefetches keep it at 13.
#if defined(KVSHARE_ATTENTION_SPREAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_SPREAD_INL_H_
#undef KVSHARE_ATTENTION_SPREAD_INL_H_
#else
#define KVSHARE_ATTENTION_SPREAD_INL_H_
#endif

#include <algorithm>

#include "attention/load-inl.h"
#include "attention/products-inl.h"
#include "attention/tuning-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

// Stops the compiler from folding one load into several instructions: the load ports, not the multipliers, would set
// the pace. Nothing folds loads on Arm.
HWY_INLINE void KeepInRegister([[maybe_unused]] Vec& v) {
#if HWY_ARCH_X86
  __asm__("" : "+v"(v.raw));
#endif
}

// Sums [R][out_stride] of earlier tiles, each row times its factor.
template <int R>
HWY_INLINE void RescaleSums(const float* rescale, int64_t head_size, float* HWY_RESTRICT out, int64_t out_stride) {
  const F32 df;
  for (int r = 0; r < R; ++r)
    for (int64_t d = 0; d < head_size; d += kLanes) {
      float* at = out + r * out_stride + d;
      hn::Store(hn::Mul(hn::Load(df, at), hn::Set(df, rescale[r])), df, at);
    }
}

// Rows a pass, of R. Few leave registers for many streams, many share a conversion.
template <typename P, int R>
inline constexpr int kSpreadRows = std::min(R, sizeof(typename P::Type) == sizeof(float) ? 2 : 4);

// One vector of columns of kKeys keys, `lanes` of it if kPartial, onto kRows rows of sums.
template <typename P, int kRows, int kKeys, bool kPartial>
HWY_INLINE void AddColumns(const Vec (&weight)[kRows * kKeys], const typename P::Pointer (&value)[kKeys], int64_t d,
                           size_t lanes, float* HWY_RESTRICT out, int64_t out_stride) {
  const F32 df;
  Vec v[kKeys];
  HWY_UNROLL(16)
  for (int k = 0; k < kKeys; ++k) {
    v[k] = kPartial ? P::LoadKeyN(value[k] + d, lanes) : P::LoadKey(value[k] + d);
    if constexpr (kRows > 1) KeepInRegister(v[k]);
  }
  HWY_UNROLL(16)
  for (int r = 0; r < kRows; ++r) {
    Vec sum = hn::Load(df, out + r * out_stride + d);
    HWY_UNROLL(16)
    for (int k = 0; k < kKeys; ++k) sum = hn::MulAdd(weight[r * kKeys + k], v[k], sum);
    hn::Store(sum, df, out + r * out_stride + d);
  }
}

// kKeys keys' values, weighted, onto kRows of the R rows of sums.
template <typename P, int R, int kRows, int kKeys>
HWY_INLINE void AddValues(const float* HWY_RESTRICT weights, typename P::Pointer values, int64_t stride,
                          const int64_t (&key)[kKeys], int64_t head_size, float* HWY_RESTRICT out, int64_t out_stride) {
  Vec weight[kRows * kKeys];
  typename P::Pointer value[kKeys];
  HWY_UNROLL(16)
  for (int k = 0; k < kKeys; ++k) {
    value[k] = values + key[k] * stride;
    HWY_UNROLL(16)
    for (int r = 0; r < kRows; ++r) weight[r * kKeys + k] = hn::Set(F32(), weights[key[k] * R + r]);
  }
  int64_t d = 0;
  HWY_UNROLL(kUnroll)
  for (; d + static_cast<int64_t>(kLanes) <= head_size; d += kLanes)
    AddColumns<P, kRows, kKeys, false>(weight, value, d, kLanes, out, out_stride);
  if (d < head_size) AddColumns<P, kRows, kKeys, true>(weight, value, d, head_size - d, out, out_stride);
}

// WeightTile where keys are spread: V in rows, as it lies, and sums that are not kept in registers.
template <typename P, int R>
HWY_INLINE void WeightSpread(const float* HWY_RESTRICT weights, typename P::Pointer values, int64_t stride,
                             int64_t count, int64_t head_size, const float* rescale, float* HWY_RESTRICT out,
                             int64_t out_stride) {
  constexpr int kRows = kSpreadRows<P, R>;
  constexpr int kKeys = std::min<int>(4, kLanes / kRows);
  if (rescale != nullptr) RescaleSums<R>(rescale, head_size, out, out_stride);
  const int64_t steps = count / kKeys;
  for (int64_t step = 0; step < steps; ++step) {
    int64_t keys[kKeys];
    for (int k = 0; k < kKeys; ++k) keys[k] = k * steps + step;
    for (int r = 0; r < R; r += kRows)
      AddValues<P, R, kRows, kKeys>(weights + r, values, stride, keys, head_size, out + r * out_stride, out_stride);
  }
  for (int64_t key = kKeys * steps; key < count; ++key)
    for (int r = 0; r < R; r += kRows)
      AddValues<P, R, kRows, 1>(weights + r, values, stride, {key}, head_size, out + r * out_stride, out_stride);
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
