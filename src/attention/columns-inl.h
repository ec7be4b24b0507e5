// Per-target: four rows of memory become columns: from [row][lane] to [lane][row], as queries are packed and masks meet
// scores.
#if defined(KVSHARE_ATTENTION_COLUMNS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_COLUMNS_INL_H_
#undef KVSHARE_ATTENTION_COLUMNS_INL_H_
#else
#define KVSHARE_ATTENTION_COLUMNS_INL_H_
#endif

#include "attention/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

using Quad = hn::FixedTag<float, 4>;

template <int kBlock, typename V>
HWY_INLINE hn::Vec<Quad> BlockOf(V v) {
  if constexpr (sizeof(V) == sizeof(hn::Vec<Quad>))
    return v;
  else
    return hn::ExtractBlock<kBlock>(v);
}

// Block k of columns[i] holds the column of lane 4k + i.
template <typename V>
HWY_INLINE void TransposeQuads(V a, V b, V c, V d, V (&columns)[4]) {
  const F32 df;
  const hn::Repartition<double, F32> dd;
  const auto ab_lower = hn::BitCast(dd, hn::InterleaveLower(df, a, b));
  const auto ab_upper = hn::BitCast(dd, hn::InterleaveUpper(df, a, b));
  const auto cd_lower = hn::BitCast(dd, hn::InterleaveLower(df, c, d));
  const auto cd_upper = hn::BitCast(dd, hn::InterleaveUpper(df, c, d));
  columns[0] = hn::BitCast(df, hn::InterleaveLower(dd, ab_lower, cd_lower));
  columns[1] = hn::BitCast(df, hn::InterleaveUpper(dd, ab_lower, cd_lower));
  columns[2] = hn::BitCast(df, hn::InterleaveLower(dd, ab_upper, cd_upper));
  columns[3] = hn::BitCast(df, hn::InterleaveUpper(dd, ab_upper, cd_upper));
}

// visit(lane, column) for every lane of four rows; column = (a[lane], b[lane], c[lane], d[lane]).
template <typename V, typename Visit>
HWY_INLINE void ForEachColumn(V a, V b, V c, V d, const Visit& visit) {
  V columns[4];
  TransposeQuads(a, b, c, d, columns);
  HWY_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    visit(i, BlockOf<0>(columns[i]));
    if constexpr (kLanes > 4) visit(4 + i, BlockOf<1>(columns[i]));
    if constexpr (kLanes > 8) {
      visit(8 + i, BlockOf<2>(columns[i]));
      visit(12 + i, BlockOf<3>(columns[i]));
    }
  }
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
