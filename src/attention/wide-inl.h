// Per-target: the tile kernels for many query rows, of prefill and chunks: near the FMA peak, where tile-inl.h is bound
// by its tree of shuffles and by reading K and V again for every eight rows.
//
// A tile of K and V is first packed: converted to f32 once and laid out in the order of use, so that the kernels have
// one pointer a tile, whatever the strides, and one code, whatever the element type. A unit's blocks of rows share the
// copy.
//
// ScoreWide   lanes are query rows: one element of K, broadcast by the load port, meets two vectors of rows. Nothing is
//             left to reduce, and the scores come out as S[key][row].
// WeightWide  as WeightTile, a few of the rows at a time.
#if defined(KVSHARE_ATTENTION_WIDE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_WIDE_INL_H_
#undef KVSHARE_ATTENTION_WIDE_INL_H_
#else
#define KVSHARE_ATTENTION_WIDE_INL_H_
#endif

#include <algorithm>

#include "attention/kernel_table.h"
#include "attention/load-inl.h"
#include "attention/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

// A pass over D: kPassVectors vectors of query rows against kPassKeys keys, whose sums fill 24 of 32 registers or 12 of
// 16. The fewer loads a multiplication the better: 12 keys and two vectors reach 82 % of the peak, 8 and three 97 %.
inline constexpr int kPassVectors = kLanes == 16 ? 3 : 2;
inline constexpr int kPassKeys = kLanes == 16 ? 8 : 6;
inline constexpr int kPassRows = kPassVectors * kLanes;
// A pass over the keys: kStripRows rows, kStripVectors vectors of V. Likewise.
inline constexpr int kStripRows = 6;
inline constexpr int kStripVectors = kLanes == 16 ? 4 : 2;
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
  static constexpr int64_t kLine = 64;
  struct Region {
    const char* rows;
    int64_t row_lines, inner, inner_stride, outer, outer_stride;
  };

  void OpenRow() {
    const Region& region = regions_[at_];
    next_ = region.rows + outer_ * region.outer_stride + inner_ * region.inner_stride;
    row_left_ = region.row_lines;
  }
  HWY_NOINLINE void NextRow() {
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

// A packed tile of `capacity` keys. Of K, panels of what a pass takes: [capacity / kPassKeys][D / kLanes rounded
// up][kPassKeys][kLanes], zero beyond D. Of V, strips: [Dv / kStrip rounded up][capacity][kStrip], zero beyond Dv.
inline constexpr int64_t PackedKeys(int64_t key_tile) { return (key_tile + kPassKeys - 1) / kPassKeys * kPassKeys; }

// rows  rows of T at `stride` elements, `count` of them; zeros fill the last panel
template <typename T>
void PackKeys(const void* HWY_RESTRICT rows, int64_t stride, int64_t count, int64_t head_size,
              float* HWY_RESTRICT packed) {
  const F32 df;
  const int64_t whole = head_size / kLanes * kLanes;
  constexpr int64_t kStep = kPassKeys * kLanes;
  const int64_t panel = (head_size + kLanes - 1) / kLanes * kStep;
  for (int64_t j = 0; j < count; ++j) {
    const auto row = Element<T>::From(rows) + j * stride;
    float* to = packed + j / kPassKeys * panel + j % kPassKeys * kLanes;
    for (int64_t d = 0; d < whole; d += kLanes, to += kStep) hn::Store(Load(row + d), df, to);
    if (whole < head_size) hn::Store(LoadN(row + whole, head_size - whole), df, to);
  }
  for (int64_t j = count; j % kPassKeys != 0; ++j)
    for (int64_t at = 0; at < panel; at += kStep)
      hn::Store(hn::Zero(df), df, packed + j / kPassKeys * panel + j % kPassKeys * kLanes + at);
}

template <typename T>
void PackValues(const void* HWY_RESTRICT rows, int64_t stride, int64_t count, int64_t head_size, int64_t capacity,
                float* HWY_RESTRICT packed) {
  const F32 df;
  for (int64_t j = 0; j < count; ++j) {
    const auto row = Element<T>::From(rows) + j * stride;
    float* to = packed + j * kStrip;
    int64_t d = 0;
    for (; d + kStrip <= head_size; d += kStrip, to += capacity * kStrip) {
      HWY_UNROLL(4)
      for (int64_t c = 0; c < kStrip; c += kLanes) hn::Store(Load(row + d + c), df, to + c);
    }
    for (; d < head_size; d += kLanes, to += kLanes)
      hn::Store(LoadN(row + d, std::min<int64_t>(kLanes, head_size - d)), df, to);
  }
}

// kKeys keys against kPassRows rows.
template <int kKeys>
HWY_INLINE void ScorePass(const float* HWY_RESTRICT query, const float* HWY_RESTRICT keys, int64_t head_size,
                          Lines& lines, int64_t lines_a_step, float* HWY_RESTRICT scores, int64_t score_stride) {
  const F32 df;
  Vec sums[kKeys][kPassVectors];
  HWY_UNROLL(16)
  for (int k = 0; k < kKeys; ++k) {
    HWY_UNROLL(4)
    for (int v = 0; v < kPassVectors; ++v) sums[k][v] = hn::Zero(df);
  }
  for (int64_t d = 0; d < head_size; d += kLanes, keys += kPassKeys * kLanes) {
    lines.Fetch(lines_a_step);
    HWY_UNROLL(4)
    for (size_t i = 0; i < kLanes; ++i, query += kPassRows) {
      Vec q[kPassVectors];
      HWY_UNROLL(4)
      for (int v = 0; v < kPassVectors; ++v) q[v] = hn::Load(df, query + v * kLanes);
      HWY_UNROLL(16)
      for (int k = 0; k < kKeys; ++k) {
        Vec element = hn::Set(df, keys[k * kLanes + i]);
        KeepInRegister(element);
        HWY_UNROLL(4)
        for (int v = 0; v < kPassVectors; ++v) sums[k][v] = hn::MulAdd(q[v], element, sums[k][v]);
      }
    }
  }
  HWY_UNROLL(16)
  for (int k = 0; k < kKeys; ++k) {
    HWY_UNROLL(4)
    for (int v = 0; v < kPassVectors; ++v) hn::Store(sums[k][v], df, scores + k * score_stride + v * kLanes);
  }
}

// query   [R / kPassRows][D rounded up to kLanes][kPassRows], zero beyond D
// keys    packed, from a panel's first on
// lines   all are brought while the scores are computed
// scores  [count rounded up to kPassKeys / 2][R]; what lies past count is of no key
template <int R>
void ScoreWide(const float* HWY_RESTRICT query, const float* HWY_RESTRICT keys, int64_t count, int64_t head_size,
               Lines& lines, float* HWY_RESTRICT scores) {
  static_assert(R % kPassRows == 0);
  const int64_t steps = (head_size + kLanes - 1) / kLanes;  // of a pass
  const int64_t pass_floats = steps * kLanes * kPassRows;
  const int64_t all_steps = (count + kPassKeys - 1) / kPassKeys * (R / kPassRows) * steps;
  const int64_t lines_a_step = (lines.left() + all_steps - 1) / all_steps;
  for (int64_t j = 0; j < count; j += kPassKeys, keys += steps * kPassKeys * kLanes) {
    for (int pass = 0; pass < R / kPassRows; ++pass) {
      const float* q = query + pass * pass_floats;
      float* to = scores + j * R + pass * kPassRows;
      if (count - j > kPassKeys / 2)
        ScorePass<kPassKeys>(q, keys, head_size, lines, lines_a_step, to, R);
      else
        ScorePass<kPassKeys / 2>(q, keys, head_size, lines, lines_a_step, to, R);
    }
  }
}

// kRows rows of `out`, kColumns vectors of V.
template <int kRows, int kColumns>
HWY_INLINE void WeightPass(const float* HWY_RESTRICT weights, int64_t weight_stride, const float* HWY_RESTRICT values,
                           int64_t count, const float* rescale, float* HWY_RESTRICT out) {
  const F32 df;
  Vec sums[kRows][kColumns];
  HWY_UNROLL(16)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (int c = 0; c < kColumns; ++c) sums[r][c] = hn::Load(df, out + r * kStrip + c * kLanes);
  }
  if (rescale != nullptr) {
    HWY_UNROLL(16)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(4)
      for (int c = 0; c < kColumns; ++c) sums[r][c] = hn::Mul(sums[r][c], hn::Set(df, rescale[r]));
    }
  }
  for (int64_t j = 0; j < count; ++j, weights += weight_stride, values += kStrip) {
    Vec v[kColumns];
    HWY_UNROLL(4)
    for (int c = 0; c < kColumns; ++c) v[c] = hn::Load(df, values + c * kLanes);
    HWY_UNROLL(16)
    for (int r = 0; r < kRows; ++r) {
      const Vec weight = hn::Set(df, weights[r]);
      HWY_UNROLL(4)
      for (int c = 0; c < kColumns; ++c) sums[r][c] = hn::MulAdd(weight, v[c], sums[r][c]);
    }
  }
  HWY_UNROLL(16)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (int c = 0; c < kColumns; ++c) hn::Store(sums[r][c], df, out + r * kStrip + c * kLanes);
  }
}

// As WeightTile, but values packed, from the first of `count` on, and out [Dv / kStrip rounded up][R][kStrip]. Rows
// from `rows` on may be left out.
template <int R>
void WeightWide(const float* HWY_RESTRICT weights, const float* HWY_RESTRICT values, int64_t capacity, int64_t count,
                int64_t head_size, int64_t rows, const float* rescale, float* HWY_RESTRICT out) {
  static_assert(R % kStripRows == 0);
  for (int64_t d = 0; d < head_size; d += kStrip, values += capacity * kStrip, out += R * kStrip) {
    const int64_t columns = std::min<int64_t>(kStripVectors, (head_size - d + kLanes - 1) / kLanes);
    for (int64_t r = 0; r < rows; r += kStripRows) {
      float* to = out + r * kStrip;
      const float* factors = rescale == nullptr ? nullptr : rescale + r;
      if (columns == kStripVectors)
        WeightPass<kStripRows, kStripVectors>(weights + r, R, values, count, factors, to);
      else
        for (int64_t c = 0; c < columns; ++c)
          WeightPass<kStripRows, 1>(weights + r, R, values + c * kLanes, count, factors, to + c * kLanes);
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
