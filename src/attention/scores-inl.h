// Per-target: from a tile of scores S[key][row] to rows of the scores' own tensor, for calls that want to see them.
#if defined(KVSHARE_ATTENTION_SCORES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_SCORES_INL_H_
#undef KVSHARE_ATTENTION_SCORES_INL_H_
#else
#define KVSHARE_ATTENTION_SCORES_INL_H_
#endif

#include <algorithm>

#include "attention/load-inl.h"
#include "attention/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

// Scores become weights that sum to 1 with the row's sink, or to 0 where no key is seen; `state` has taken in all keys.
template <int R>
inline void NormalizeTile(float* scores, int64_t lanes, const RowState& state) {
  const F32 df;
  constexpr int kVectors = kRowVectors<R>;
  for (int v = 0; v < kVectors; ++v) {
    const Vec max = hn::Load(df, state.max + v * kLanes);
    const Vec sum = hn::Load(df, state.sum + v * kLanes);
    const Vec shift = hn::IfThenZeroElse(hn::Eq(max, hn::Set(df, kHidden)), max);
    const Vec inverse = hn::IfThenZeroElse(hn::Eq(sum, hn::Zero(df)), hn::Div(hn::Set(df, 1.0F), sum));
    for (int64_t i = v * kLanes; i < lanes; i += kVectors * kLanes)
      hn::Store(hn::Mul(Exp(hn::Sub(hn::Load(df, scores + i), shift)), inverse), df, scores + i);
  }
}

// Elements [index, index + count) of the tensor from one row of the tile, whose keys lie R apart.
template <int R>
inline void StoreTileRow(const float* scores, int64_t count, const MutableScoresView& out, int64_t index) {
  const hn::RebindToSigned<F32> di;
  const auto apart = hn::Mul(hn::Iota(di, 0), hn::Set(di, R));
  for (int64_t j = 0; j < count; j += kLanes)
    StoreAny(hn::GatherIndex(F32(), scores + j * R, apart), out.data, out.type, index + j,
             std::min<int64_t>(kLanes, count - j));
}

inline void FillScores(float value, int64_t count, const MutableScoresView& out, int64_t index) {
  for (int64_t j = 0; j < count; j += kLanes)
    StoreAny(hn::Set(F32(), value), out.data, out.type, index + j, std::min<int64_t>(kLanes, count - j));
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
