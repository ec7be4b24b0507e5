// Per-target: the tile kernels for many query rows, of prefill and chunks: near the FMA peak, where tile-inl.h is bound
// by its tree of shuffles and by reading K and V again for every eight rows.
//
// A tile of K and V is first packed: made into cells of P (products-inl.h) once, and laid out in the order of use, so
// that the kernels have one pointer a tile, whatever the strides. A unit's blocks of rows share the copy.
//
// ScoreWide   lanes are query rows: one cell of K, broadcast by the load port, meets two vectors of rows. Nothing is
//             left to reduce, and the scores come out as S[key][row].
// WeightWide  as WeightTile, a few of the rows at a time.
#if defined(KVSHARE_ATTENTION_WIDE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_WIDE_INL_H_
#undef KVSHARE_ATTENTION_WIDE_INL_H_
#else
#define KVSHARE_ATTENTION_WIDE_INL_H_
#endif

#include <algorithm>
#include <type_traits>

#include "attention/fetch-inl.h"
#include "attention/kernel_table.h"
#include "attention/load-inl.h"
#include "attention/products-inl.h"
#include "attention/tuning-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

inline constexpr int kPassRows = kPassVectors * kLanes;
inline constexpr int64_t kStrip = kStripVectors * kLanes;

// Lines of memory that are wanted in L2 soon, handed out one by one.
class Lines {
 public:
  // `outer` times `inner` rows of `row_bytes`.
  void Add(const void* rows, int64_t row_bytes, int64_t inner, int64_t inner_stride, int64_t outer,
           int64_t outer_stride) {
    const int64_t row_lines = (row_bytes + kLine - 1) / kLine;
    regions_[size_++] = {static_cast<const char*>(rows), row_lines, inner, inner_stride, outer, outer_stride};
    left_ += inner * outer * row_lines;
    if (size_ == 1) OpenRow();
  }
  int64_t left() const { return left_; }
  // Brings `count` more.
  HWY_INLINE void Fetch(int64_t count) {
    for (; count > 0 && left_ > 0; --count, --left_) {
      PrefetchL2(next_);
      next_ += kLine;
      if (--row_left_ == 0) NextRow();
    }
  }

 private:
  struct Region {
    const char* rows;
    int64_t row_lines, inner, inner_stride, outer, outer_stride;
  };

  void OpenRow() {
    const Region& region = regions_[at_];
    next_ = region.rows + outer_ * region.outer_stride + inner_ * region.inner_stride;
    row_left_ = region.row_lines;
  }
  // Inline, though rare: around a call every sum of ScorePass would go through memory.
  HWY_INLINE void NextRow() {
    const Region& region = regions_[at_];
    if (++inner_ == region.inner) {
      inner_ = 0;
      if (++outer_ == region.outer) {
        outer_ = 0;
        if (++at_ == size_) return;
      }
    }
    OpenRow();
  }

  Region regions_[4];
  int size_ = 0, at_ = 0;
  int64_t left_ = 0, row_left_ = 0, inner_ = 0, outer_ = 0;
  const char* next_ = nullptr;
};

// A packed tile of `capacity` keys, in cells of P. Of K, panels of what a pass takes: [capacity / kPassKeys][cells of D
// / kLanes rounded up][kPassKeys][kLanes], zero beyond D. Of V, strips: [Dv / kStrip rounded up][cells of
// capacity][kStrip], zero beyond Dv.
inline constexpr int64_t PackedKeys(int64_t key_tile) { return (key_tile + kPassKeys - 1) / kPassKeys * kPassKeys; }

// rows  rows of T at `stride` elements, `count` of them; zeros fill the last panel
template <typename P>
void PackKeys(const void* HWY_RESTRICT rows, int64_t stride, int64_t count, int64_t head_size,
              float* HWY_RESTRICT packed) {
  const F32 df;
  constexpr int64_t kElements = P::kElements * kLanes;  // of a row, a step
  constexpr int64_t kStep = kPassKeys * kLanes;
  const int64_t whole = head_size / kElements * kElements;
  const int64_t panel = (head_size + kElements - 1) / kElements * kStep;
  for (int64_t j = 0; j < count; ++j) {
    const auto row = Element<typename P::Type>::From(rows) + j * stride;
    float* to = packed + j / kPassKeys * panel + j % kPassKeys * kLanes;
    for (int64_t d = 0; d < whole; d += kElements, to += kStep) hn::Store(P::Cells(P::LoadKey(row + d)), df, to);
    if (whole < head_size) hn::Store(P::Cells(P::LoadKeyN(row + whole, head_size - whole)), df, to);
  }
  for (int64_t j = count; j % kPassKeys != 0; ++j)
    for (int64_t at = 0; at < panel; at += kStep)
      hn::Store(hn::Zero(df), df, packed + j / kPassKeys * panel + j % kPassKeys * kLanes + at);
}

template <typename P>
void PackValues(const void* HWY_RESTRICT rows, int64_t stride, int64_t count, int64_t head_size, int64_t capacity,
                float* HWY_RESTRICT packed) {
  const F32 df;
  constexpr int kLeast = P::kElements;  // vectors of V that a load gives
  const int64_t strip = capacity / P::kElements * kStrip;
  for (int64_t j = 0; j < count; j += P::kElements) {
    const auto row = Element<typename P::Type>::From(rows) + j * stride;
    // The last of an odd number of keys is its own partner, whose weight is 0.
    const auto partner = Element<typename P::Type>::From(rows) + (std::min(j + P::kElements, count) - 1) * stride;
    float* to = packed + j / P::kElements * kStrip;
    int64_t d = 0;
    for (; d + kStrip <= head_size; d += kStrip, to += strip) {
      typename P::Factor v[kStripVectors];
      P::template LoadValues<kStripVectors, false>(row + d, partner + d, 0, v);
      HWY_UNROLL(4)
      for (int c = 0; c < kStripVectors; ++c) hn::Store(P::Cells(v[c]), df, to + c * kLanes);
    }
    for (; d < head_size; d += kLeast * kLanes, to += kLeast * kLanes) {
      typename P::Factor v[kLeast];
      P::template LoadValues<kLeast, true>(row + d, partner + d, std::min<int64_t>(kLeast * kLanes, head_size - d), v);
      HWY_UNROLL(2)
      for (int c = 0; c < kLeast; ++c) hn::Store(P::Cells(v[c]), df, to + c * kLanes);
    }
  }
}

// a * b onto `sum`, in its register: where all 16 are taken, g++ 12 else moves sums about.
template <typename P>
HWY_INLINE typename P::Sum MulAddInPlace(typename P::Factor a, typename P::Factor b, typename P::Sum sum) {
#if HWY_TARGET == HWY_AVX2
  if constexpr (std::is_same_v<typename P::Factor, Vec>) {
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(sum.raw) : "x"(a.raw), "x"(b.raw));
    return sum;
  }
#endif
  return P::MulAdd(a, b, sum);
}

// kKeys keys against kPassRows rows.
template <typename P, int kKeys>
HWY_INLINE void ScorePass(const float* HWY_RESTRICT query, const float* HWY_RESTRICT keys, int64_t steps, Lines& lines,
                          int64_t lines_a_step, const float* factors, float* HWY_RESTRICT scores,
                          int64_t score_stride) {
  const F32 df;
  typename P::Sum sums[kKeys][kPassVectors];
  HWY_UNROLL(16)
  for (int k = 0; k < kKeys; ++k) {
    HWY_UNROLL(4)
    for (int v = 0; v < kPassVectors; ++v) sums[k][v] = P::Zero();
  }
  const auto add_cell = [&](size_t lane) HWY_ATTR {
    typename P::Factor q[kPassVectors];
    HWY_UNROLL(4)
    for (int v = 0; v < kPassVectors; ++v) q[v] = P::FromCells(hn::Load(df, query + v * kLanes));
    HWY_UNROLL(16)
    for (int k = 0; k < kKeys; ++k) {
      Vec cell = CellOf(keys + k * kLanes, lane);
      KeepInRegister(cell);
      HWY_UNROLL(4)
      for (int v = 0; v < kPassVectors; ++v) sums[k][v] = MulAddInPlace<P>(q[v], P::FromCells(cell), sums[k][v]);
    }
    query += kPassRows;
  };
  for (int64_t step = 0; step < steps; ++step, keys += kPassKeys * kLanes) {
    if (step % kLineSteps == 0) lines.Fetch(kLineSteps * lines_a_step);
    for (size_t lane = 0; lane < kLanes; lane += kUnroll) {
      HWY_UNROLL(kUnroll)
      for (size_t u = 0; u < kUnroll; ++u) add_cell(lane + u);
    }
  }
  HWY_UNROLL(16)
  for (int k = 0; k < kKeys; ++k) {
    HWY_UNROLL(4)
    for (int v = 0; v < kPassVectors; ++v) {
      Vec sum = P::ToF32(sums[k][v]);
      if constexpr (P::kScoreFactors) sum = hn::Mul(sum, hn::Load(df, factors + v * kLanes));
      hn::Store(sum, df, scores + k * score_stride + v * kLanes);
    }
  }
}

// query    [R / kPassRows][cells of D rounded up to kLanes][kPassRows], zero beyond D
// keys     packed, from a panel's first on
// lines    all are brought while the scores are computed
// factors  [R] what the rows' sums are multiplied by, if P has factors
// scores   [count rounded up to kPassKeys / 2][R]; what lies past count is of no key
template <typename P, int R>
void ScoreWide(const float* HWY_RESTRICT query, const float* HWY_RESTRICT keys, int64_t count, int64_t head_size,
               Lines& lines, const float* factors, float* HWY_RESTRICT scores) {
  static_assert(R % kPassRows == 0);
  constexpr int64_t kElements = P::kElements * kLanes;
  const int64_t steps = (head_size + kElements - 1) / kElements;  // of a pass
  const int64_t pass_floats = steps * kLanes * kPassRows;
  const int64_t all_steps = (count + kPassKeys - 1) / kPassKeys * (R / kPassRows) * steps;
  const int64_t lines_a_step = (lines.left() + all_steps - 1) / all_steps;
  for (int64_t j = 0; j < count; j += kPassKeys, keys += steps * kPassKeys * kLanes) {
    for (int pass = 0; pass < R / kPassRows; ++pass) {
      const float* q = query + pass * pass_floats;
      const float* f = factors + pass * kPassRows;
      float* to = scores + j * R + pass * kPassRows;
      if (count - j > kPassKeys / 2)
        ScorePass<P, kPassKeys>(q, keys, steps, lines, lines_a_step, f, to, R);
      else
        ScorePass<P, kPassKeys / 2>(q, keys, steps, lines, lines_a_step, f, to, R);
    }
  }
}

// kRows rows of `out`, kColumns vectors of V.
template <typename P, int kRows, int kColumns>
HWY_INLINE void WeightPass(const float* HWY_RESTRICT weights, int64_t weight_stride, const float* HWY_RESTRICT values,
                           int64_t count, const float* rescale, float* HWY_RESTRICT out) {
  const F32 df;
  typename P::Sum sums[kRows][kColumns];
  HWY_UNROLL(16)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (int c = 0; c < kColumns; ++c)
      sums[r][c] = BeginSum(out + r * kStrip + c * kLanes, rescale == nullptr ? nullptr : rescale + r);
  }
  const auto add_cell = [&]() HWY_ATTR {
    typename P::Factor v[kColumns];
    HWY_UNROLL(4)
    for (int c = 0; c < kColumns; ++c) v[c] = P::FromCells(hn::Load(df, values + c * kLanes));
    HWY_UNROLL(16)
    for (int r = 0; r < kRows; ++r) {
      Vec cell = CellOf(weights, r);
      KeepInRegister(cell);
      HWY_UNROLL(4)
      for (int c = 0; c < kColumns; ++c) sums[r][c] = P::MulAdd(P::FromCells(cell), v[c], sums[r][c]);
    }
    weights += P::kElements * weight_stride;
    values += kStrip;
  };
  constexpr int64_t kTurn = kUnroll * P::kElements;
  int64_t j = 0;
  for (; j + kTurn <= count; j += kTurn) {
    HWY_UNROLL(kUnroll)
    for (int u = 0; u < kUnroll; ++u) add_cell();
  }
  for (; j < count; j += P::kElements) add_cell();
  HWY_UNROLL(16)
  for (int r = 0; r < kRows; ++r) EndSums<kColumns>(sums[r], out + r * kStrip);
}

// As WeightTile, but values packed, from key `first` on, and out [Dv / kStrip rounded up][R][kStrip]. Rows from `rows`
// on may be left out.
template <typename P, int R>
void WeightWide(float* HWY_RESTRICT weights, const float* HWY_RESTRICT values, int64_t capacity, int64_t first,
                int64_t count, int64_t head_size, int64_t rows, const float* rescale, float* HWY_RESTRICT out) {
  static_assert(R % kStripRows == 0);
  P::template PackWeights<R>(weights, count);
  values += first / P::kElements * kStrip;
  for (int64_t d = 0; d < head_size; d += kStrip, values += capacity / P::kElements * kStrip, out += R * kStrip) {
    const int64_t columns = std::min<int64_t>(kStripVectors, (head_size - d + kLanes - 1) / kLanes);
    for (int64_t r = 0; r < rows; r += kStripRows) {
      float* to = out + r * kStrip;
      const float* rescale_rows = rescale == nullptr ? nullptr : rescale + r;
      if (columns == kStripVectors)
        WeightPass<P, kStripRows, kStripVectors>(weights + r, R, values, count, rescale_rows, to);
      else
        for (int64_t c = 0; c < columns; ++c)
          WeightPass<P, kStripRows, 1>(weights + r, R, values + c * kLanes, count, rescale_rows, to + c * kLanes);
    }
  }
}

// Row r of the R rows that WeightWide sums up, put together in `row`.
inline void GatherRow(const float* HWY_RESTRICT out, int64_t R, int64_t r, int64_t head_size, float* HWY_RESTRICT row) {
  for (int64_t d = 0; d < head_size; d += kStrip) std::copy_n(out + d * R + r * kStrip, kStrip, row + d);
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
