// Per-target: scores of quantized keys where those of f32 would be off by more than can be left unseen: channels or
// scores that are very large.
#if defined(KVSHARE_ATTENTION_EXACT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_EXACT_INL_H_
#undef KVSHARE_ATTENTION_EXACT_INL_H_
#else
#define KVSHARE_ATTENTION_EXACT_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "attention/load-inl.h"
#include "attention/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

// The largest magnitude that a code of T has; what else T is has no codes.
template <typename T>
inline constexpr float kMostCode = std::is_same_v<T, I4>       ? 8.0F
                                   : std::is_same_v<T, F8E4M3> ? 448.0F
                                                               : 128.0F;
template <typename T>
inline constexpr bool kHasCodes = std::is_same_v<T, int8_t> || std::is_same_v<T, I4> || std::is_same_v<T, F8E4M3>;

// Whether f32 may score a row of `count` queries, scaled as scores are. A score is about as large as the row's length
// times the root mean square of codes, and f32 sums of scores up to 100 are off by about 1e-5.
template <typename T>
bool MayScoreInF32(const float* row, int64_t count) {
  const F32 df;
  Vec squares = hn::Zero(df);
  for (int64_t d = 0; d < count; d += kLanes) {
    const Vec q = hn::Load(df, row + d);
    squares = hn::MulAdd(q, q, squares);
  }
  return std::sqrt(hn::ReduceSum(df, squares)) * kMostCode<T> * 0.58F < 100;
}

// ScoreTile of tile-inl.h, with products added in double precision.
template <typename T, int R>
void ScoreInF64(const float* HWY_RESTRICT query, const void* HWY_RESTRICT key_rows, int64_t stride, int64_t count,
                int64_t head_size, const Fetch& /*fetch*/, const float* /*factors*/, float* HWY_RESTRICT scores) {
  const F32 df;
  const hn::Repartition<double, F32> dd;
  const auto keys = Element<T>::From(key_rows);
  for (int64_t j = 0; j < count; ++j) {
    const auto key = keys + j * stride;
    hn::Vec<decltype(dd)> sums[R];
    for (int r = 0; r < R; ++r) sums[r] = hn::Zero(dd);
    for (int64_t d = 0; d < head_size; d += kLanes) {
      const Vec codes = LoadN(key + d, std::min<int64_t>(kLanes, head_size - d));
      const auto lower = hn::PromoteLowerTo(dd, codes);
      const auto upper = hn::PromoteUpperTo(dd, codes);
      for (int r = 0; r < R; ++r) {
        const Vec q = hn::Load(df, query + d * R + r * kLanes);
        sums[r] = hn::MulAdd(hn::PromoteLowerTo(dd, q), lower, sums[r]);
        sums[r] = hn::MulAdd(hn::PromoteUpperTo(dd, q), upper, sums[r]);
      }
    }
    for (int r = 0; r < R; ++r) scores[j * R + r] = static_cast<float>(hn::ReduceSum(dd, sums[r]));
  }
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
