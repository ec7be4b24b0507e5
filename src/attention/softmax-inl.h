// Per-target: what happens to a tile of scores S[key][row] between the two tile kernels. Every operation is lane-wise,
// since a lane always belongs to the same row: lane l of vector i holds key (i*kLanes + l) / R, row (i*kLanes + l) % R.
#if defined(KVSHARE_ATTENTION_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_SOFTMAX_INL_H_
#undef KVSHARE_ATTENTION_SOFTMAX_INL_H_
#else
#define KVSHARE_ATTENTION_SOFTMAX_INL_H_
#endif

#include <algorithm>
#include <limits>

#include "attention/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

inline constexpr float kHidden = -std::numeric_limits<float>::infinity();

// The larger of the two, and NaN where `x` is: of a NaN and a number, Arm's Max takes the number, x86's its second one.
HWY_INLINE Vec AtLeast(Vec least, Vec x) {
#if HWY_ARCH_X86
  return hn::Max(least, x);
#else
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Max(least, x));
#endif
}

// e^x for x <= 0 (NaN stays NaN): 2^n * p(r), relative error <= 2e-7 * (1 + |x|/8); 0 below 2^-126.
HWY_INLINE Vec Exp(Vec x) {
  const F32 df;
  const Vec t = AtLeast(hn::Set(df, -127.0F), hn::Mul(x, hn::Set(df, 1.44269504F)));
  // Adding 1.5 * 2^23 rounds to an integer n and leaves n + 127, the exponent's bits, lowest.
  const Vec magic = hn::Set(df, 12582912.0F + 127.0F);
  const Vec shifted = hn::Add(t, magic);
  const Vec r = hn::Sub(t, hn::Sub(shifted, magic));
  // Minimax of degree 6 on [-1/2, 1/2], relative error 2e-9.
  Vec p = hn::Set(df, 0.00015345810970757157F);
  p = hn::MulAdd(p, r, hn::Set(df, 0.0013399930903688073F));
  p = hn::MulAdd(p, r, hn::Set(df, 0.009618489071726799F));
  p = hn::MulAdd(p, r, hn::Set(df, 0.05550328642129898F));
  p = hn::MulAdd(p, r, hn::Set(df, 0.24022646248340607F));
  p = hn::MulAdd(p, r, hn::Set(df, 0.6931471824645996F));
  p = hn::MulAdd(p, r, hn::Set(df, 1.0F));
  // n = -127 has exponent bits 0: the value zero.
  const hn::RebindToUnsigned<F32> du;
  return hn::Mul(p, hn::BitCast(df, hn::ShiftLeft<23>(hn::BitCast(du, shifted))));
}

// tanh(x): odd polynomial near 0, where 1 - 2/(1 + e^2x) would cancel. Relative error <= 4e-7.
HWY_INLINE Vec Tanh(Vec x) {
  const F32 df;
  const Vec magnitude = hn::Abs(x);
  const Vec e = Exp(hn::Mul(magnitude, hn::Set(df, -2.0F)));
  const Vec one = hn::Set(df, 1.0F);
  const Vec large = hn::CopySign(hn::Div(hn::Sub(one, e), hn::Add(one, e)), x);
  const Vec x2 = hn::Mul(x, x);
  Vec p = hn::Set(df, 62.0F / 2835.0F);
  p = hn::MulAdd(p, x2, hn::Set(df, -17.0F / 315.0F));
  p = hn::MulAdd(p, x2, hn::Set(df, 2.0F / 15.0F));
  p = hn::MulAdd(p, x2, hn::Set(df, -1.0F / 3.0F));
  const Vec small = hn::MulAdd(hn::Mul(p, x2), x, x);
  return hn::IfThenElse(hn::Lt(magnitude, hn::Set(df, 0.25F)), small, large);
}

// Lanes of one row are kRows apart: combines them so that every lane has its row's result.
template <int R, typename Op>
HWY_INLINE Vec AcrossKeys(Vec v, Op op) {
  const F32 df;
  if constexpr (kLanes == 16 && R < 16) v = op(v, hn::ConcatLowerUpper(df, v, v));
  if constexpr (kLanes >= 8 && R < 8) {
    if constexpr (kLanes == 16) v = op(v, hn::SwapAdjacentBlocks(v));
    if constexpr (kLanes == 8) v = op(v, hn::ConcatLowerUpper(df, v, v));
  }
  if constexpr (R < 4) v = op(v, hn::Shuffle1032(v));
  if constexpr (R < 2) v = op(v, hn::Shuffle2301(v));
  return v;
}

struct MaxOp {
  HWY_INLINE Vec operator()(Vec a, Vec b) const { return hn::Max(a, b); }
};
struct AddOp {
  HWY_INLINE Vec operator()(Vec a, Vec b) const { return hn::Add(a, b); }
};

// How many vectors hold one key's rows, and how many lanes the state of R rows takes (rows repeated to a full vector).
template <int R>
inline constexpr int kRowVectors = std::max<int>(1, R / kLanes);
template <int R>
inline constexpr int kStateLanes = std::max<int>(R, kLanes);

// The running state of R rows; arrays of kStateLanes<R> floats.
struct RowState {
  float* max;  // largest score so far
  float* sum;  // of exp(score - max)
};

inline void SoftcapTile(float* scores, int64_t lanes, float softcap) {
  const F32 df;
  const Vec cap = hn::Set(df, softcap);
  const Vec inverse = hn::Set(df, 1.0F / softcap);
  for (int64_t i = 0; i < lanes; i += kLanes)
    hn::Store(hn::Mul(cap, Tanh(hn::Mul(hn::Load(df, scores + i), inverse))), df, scores + i);
}

// Hides the lanes whose key lies outside their row's range. `first` is the number of the tile's key 0; `begin` and
// `end` are the rows' ranges, [kStateLanes<R>].
template <int R>
inline void HideOutside(float* scores, int64_t lanes, int32_t first, const int32_t* begin, const int32_t* end) {
  const F32 df;
  const hn::RebindToSigned<F32> di;
  constexpr int kVectors = kRowVectors<R>;
  for (int v = 0; v < kVectors; ++v) {
    const auto lo = hn::LoadU(di, begin + v * kLanes);
    const auto hi = hn::LoadU(di, end + v * kLanes);
    auto key = hn::Set(di, first);
    if constexpr (R < static_cast<int>(kLanes)) {
      constexpr int kShift = R == 1 ? 0 : R == 2 ? 1 : R == 4 ? 2 : 3;
      key = hn::Add(key, hn::ShiftRight<kShift>(hn::Iota(di, 0)));
    }
    const auto step = hn::Set(di, std::max<int32_t>(1, kLanes / R));
    for (int64_t i = v * kLanes; i < lanes; i += kVectors * kLanes) {
      const auto outside = hn::Or(hn::Lt(key, lo), hn::Not(hn::Lt(key, hi)));
      const Vec s = hn::Load(df, scores + i);
      hn::Store(hn::IfThenElse(hn::RebindMask(df, outside), hn::Set(df, kHidden), s), df, scores + i);
      key = hn::Add(key, step);
    }
  }
}

// To the nearest number of bf16, ties to even.
HWY_INLINE Vec RoundToBF16(Vec x) {
  const F32 df;
  const hn::RebindToUnsigned<F32> du;
  const auto bits = hn::BitCast(du, x);
  const auto even = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(bits, hn::Add(even, hn::Set(du, 0x7FFF)));
  return hn::IfThenElse(hn::IsNaN(x), x, hn::BitCast(df, hn::And(rounded, hn::Set(du, 0xFFFF0000))));
}

// Folds a tile into the state: scores become weights exp(score - max), `rescale` [kStateLanes<R>] is what earlier sums
// must be multiplied by. Returns whether any of it differs from 1. Weights that the kernels round are rounded here, so
// that they add up to what is divided by.
template <int R, bool kRoundToBF16 = false>
inline bool UpdateSoftmax(float* scores, int64_t lanes, const RowState& state, float* rescale) {
  const F32 df;
  constexpr int kVectors = kRowVectors<R>;
  Vec max[kVectors];
  Vec shift[kVectors];
  Vec sum[kVectors];
  for (int v = 0; v < kVectors; ++v) max[v] = hn::Load(df, state.max + v * kLanes);
  for (int64_t i = 0; i < lanes; i += kVectors * kLanes)
    for (int v = 0; v < kVectors; ++v) max[v] = hn::Max(max[v], hn::Load(df, scores + i + v * kLanes));
  for (int v = 0; v < kVectors; ++v) {
    max[v] = AcrossKeys<R>(max[v], MaxOp());
    // A row that has seen only hidden keys keeps max = -inf; subtracting 0 then gives weights exp(-inf) = 0.
    shift[v] = hn::IfThenZeroElse(hn::Eq(max[v], hn::Set(df, kHidden)), max[v]);
    sum[v] = hn::Zero(df);
  }
  for (int64_t i = 0; i < lanes; i += kVectors * kLanes)
    for (int v = 0; v < kVectors; ++v) {
      Vec weight = Exp(hn::Sub(hn::Load(df, scores + i + v * kLanes), shift[v]));
      if constexpr (kRoundToBF16) weight = RoundToBF16(weight);
      sum[v] = hn::Add(sum[v], weight);
      hn::Store(weight, df, scores + i + v * kLanes);
    }
  bool moved = false;
  for (int v = 0; v < kVectors; ++v) {
    // Nothing has been summed where the old maximum is -inf, so there is nothing to rescale.
    const Vec old_max = hn::Load(df, state.max + v * kLanes);
    const Vec factor =
        hn::IfThenElse(hn::Eq(old_max, hn::Set(df, kHidden)), hn::Set(df, 1.0F), Exp(hn::Sub(old_max, shift[v])));
    hn::Store(factor, df, rescale + v * kLanes);
    const Vec total = hn::MulAdd(hn::Load(df, state.sum + v * kLanes), factor, AcrossKeys<R>(sum[v], AddOp()));
    hn::Store(total, df, state.sum + v * kLanes);
    hn::Store(max[v], df, state.max + v * kLanes);
    moved = moved || !hn::AllTrue(df, hn::Eq(factor, hn::Set(df, 1.0F)));
  }
  return moved;
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
