// Per-target: the two tile kernels, where nearly all time goes. R query rows share every load of K and of V.
//
// ScoreTile   S[key][row] = q[row] . k[key]   summed along D with one accumulator a (key, row) pair, so that K is read
//             as it lies: no packing, no transposition. One tree of shuffles turns kLanes accumulators into one vector
//             whose lanes are (key, row).
// WeightTile  o[row][:] += S[key][row] * v[key][:]   a few columns of V at a time, each line of V touched once.
//
// Both bring rows that are wanted next into L2 while they work, a line a step: ScoreTile the V rows, WeightTile the
// next K rows. The hardware prefetcher does not do it: without, decode at T = 512 takes twice as long.
#if defined(KVSHARE_ATTENTION_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_TILE_INL_H_
#undef KVSHARE_ATTENTION_TILE_INL_H_
#else
#define KVSHARE_ATTENTION_TILE_INL_H_
#endif

#include <algorithm>

#include "attention/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

// Rows to bring into L2 meanwhile: the first `count` from `rows` on, `stride_bytes` apart.
struct Fetch {
  const char* rows = nullptr;
  int64_t stride_bytes = 0;
  int64_t count = 0;

  // Where row j lies; `instead`, which is at hand anyway, once there is no such row.
  HWY_INLINE const char* Row(int64_t j, const void* instead) const {
    return j < count ? rows + j * stride_bytes : static_cast<const char*>(instead);
  }
};

// Whether element d of a row is the first of its cache line: narrow types have several vectors a line.
template <typename T>
HWY_INLINE bool OpensLine(int64_t d) {
  return Element<T>::Bytes(kLanes) >= 64 || Element<T>::Bytes(d) % 64 < Element<T>::Bytes(kLanes);
}

// Per 128-bit block: lanes (a, b, c, d) of the sums over the block's four lanes.
HWY_INLINE Vec SumQuads(Vec a, Vec b, Vec c, Vec d) {
  const F32 df;
  const hn::Repartition<double, F32> dd;
  const Vec ab = hn::Add(hn::InterleaveLower(df, a, b), hn::InterleaveUpper(df, a, b));
  const Vec cd = hn::Add(hn::InterleaveLower(df, c, d), hn::InterleaveUpper(df, c, d));
  const auto ab2 = hn::BitCast(dd, ab);
  const auto cd2 = hn::BitCast(dd, cd);
  return hn::Add(hn::BitCast(df, hn::InterleaveLower(dd, ab2, cd2)),
                 hn::BitCast(df, hn::InterleaveUpper(dd, ab2, cd2)));
}

// Lane i of the result is the sum of all lanes of sums[i].
HWY_INLINE Vec SumEach(const Vec (&sums)[kLanes]) {
  const F32 df;
  if constexpr (kLanes == 4) {
    return SumQuads(sums[0], sums[1], sums[2], sums[3]);
  } else if constexpr (kLanes == 8) {
    const Vec x0 = SumQuads(sums[0], sums[1], sums[2], sums[3]);
    const Vec x1 = SumQuads(sums[4], sums[5], sums[6], sums[7]);
    return hn::Add(hn::ConcatLowerLower(df, x1, x0), hn::ConcatUpperUpper(df, x1, x0));
  } else {
    const Vec x0 = SumQuads(sums[0], sums[1], sums[2], sums[3]);
    const Vec x1 = SumQuads(sums[4], sums[5], sums[6], sums[7]);
    const Vec x2 = SumQuads(sums[8], sums[9], sums[10], sums[11]);
    const Vec x3 = SumQuads(sums[12], sums[13], sums[14], sums[15]);
    // Blocks of y02: x0, x0, x2, x2, each half summed; of y13 likewise. The last step adds the halves and puts the
    // blocks in order.
    const Vec y02 = hn::Add(hn::ConcatLowerLower(df, x2, x0), hn::ConcatUpperUpper(df, x2, x0));
    const Vec y13 = hn::Add(hn::ConcatLowerLower(df, x3, x1), hn::ConcatUpperUpper(df, x3, x1));
    const Vec even = hn::OddEvenBlocks(y13, y02);
    const Vec odd = hn::OddEvenBlocks(y02, y13);
    return hn::Add(even, hn::SwapAdjacentBlocks(odd));
  }
}

// Stops the compiler from folding one load into several instructions: the load ports, not the multipliers, would set
// the pace.
HWY_INLINE void KeepInRegister(Vec& v) { __asm__("" : "+v"(v.raw)); }

// query   [D / kLanes rounded up][R][kLanes] f32, zero beyond D
// keys    rows of T at `stride` elements, `count` of them
// scores  [count rounded up to full vectors][R]; lanes past count hold copies of the last key's scores
template <typename T, int R, bool kFetch>
HWY_INLINE void ScoreRows(const float* HWY_RESTRICT query, typename Element<T>::Pointer keys, int64_t stride,
                          int64_t count, int64_t head_size, const Fetch& fetch, float* HWY_RESTRICT scores) {
  constexpr int kRows = std::min<int>(R, kLanes);  // rows a pass
  constexpr int kKeys = kLanes / kRows;            // keys a pass
  const int64_t whole = head_size / kLanes * kLanes;
  const size_t rest = head_size - whole;
  for (int64_t j = 0; j < count; j += kKeys) {
    typename Element<T>::Pointer key[kKeys];
    [[maybe_unused]] const char* next[kKeys];
    for (int k = 0; k < kKeys; ++k) {
      key[k] = keys + std::min(j + k, count - 1) * stride;
      if constexpr (kFetch) next[k] = fetch.Row(j + k, Element<T>::Address(key[k]));
    }
    for (int first = 0; first < R; first += kRows) {
      Vec sums[kLanes];
      HWY_UNROLL(16)
      for (size_t i = 0; i < kLanes; ++i) sums[i] = hn::Zero(F32());
      const float* HWY_RESTRICT q = query + first * kLanes;
      for (int64_t d = 0; d < whole; d += kLanes, q += R * kLanes) {
        Vec k_vectors[kKeys];
        HWY_UNROLL(16)
        for (int k = 0; k < kKeys; ++k) {
          k_vectors[k] = Load(key[k] + d);
          if constexpr (kFetch)
            if (OpensLine<T>(d)) PrefetchL2(next[k] + Element<T>::Bytes(d));
        }
        HWY_UNROLL(16)
        for (int r = 0; r < kRows; ++r) {
          Vec q_vector = hn::Load(F32(), q + r * kLanes);
          if constexpr (kKeys > 1) KeepInRegister(q_vector);
          HWY_UNROLL(16)
          for (int k = 0; k < kKeys; ++k) sums[k * kRows + r] = hn::MulAdd(q_vector, k_vectors[k], sums[k * kRows + r]);
        }
      }
      if (rest != 0) {
        HWY_UNROLL(16)
        for (int k = 0; k < kKeys; ++k) {
          const Vec k_vector = LoadN(key[k] + whole, rest);
          HWY_UNROLL(16)
          for (int r = 0; r < kRows; ++r)
            sums[k * kRows + r] = hn::MulAdd(hn::Load(F32(), q + r * kLanes), k_vector, sums[k * kRows + r]);
        }
      }
      hn::Store(SumEach(sums), F32(), scores + j * R + first);
    }
  }
}

template <typename T, int R>
void ScoreTile(const float* HWY_RESTRICT query, const void* HWY_RESTRICT key_rows, int64_t stride, int64_t count,
               int64_t head_size, const Fetch& fetch, float* HWY_RESTRICT scores) {
  const auto keys = Element<T>::From(key_rows);
  // Fetching costs a load port a line even where the line is at hand, so blocks after the first do without.
  if (fetch.count > 0)
    ScoreRows<T, R, true>(query, keys, stride, count, head_size, fetch, scores);
  else
    ScoreRows<T, R, false>(query, keys, stride, count, head_size, fetch, scores);
}

// One strip of kColumns vectors of V, from column d; the last vector has `lanes` lanes if kPartial.
template <typename T, int R, int kColumns, bool kPartial, bool kFetch>
HWY_INLINE void WeightStrip(const float* HWY_RESTRICT weights, typename Element<T>::Pointer values, int64_t stride,
                            int64_t count, const Fetch& fetch, size_t lanes, const float* rescale,
                            float* HWY_RESTRICT out, int64_t out_stride) {
  const F32 df;
  Vec sums[R * kColumns];
  HWY_UNROLL(16)
  for (int r = 0; r < R; ++r) {
    HWY_UNROLL(16)
    for (int c = 0; c < kColumns; ++c) sums[r * kColumns + c] = hn::Load(df, out + r * out_stride + c * kLanes);
  }
  if (rescale != nullptr) {
    HWY_UNROLL(16)
    for (int r = 0; r < R; ++r) {
      HWY_UNROLL(16)
      for (int c = 0; c < kColumns; ++c)
        sums[r * kColumns + c] = hn::Mul(sums[r * kColumns + c], hn::Set(df, rescale[r]));
    }
  }
  for (int64_t j = 0; j < count; ++j) {
    const auto value = values + j * stride;
    [[maybe_unused]] const char* next = kFetch ? fetch.Row(j, Element<T>::Address(value)) : nullptr;
    Vec v[kColumns];
    HWY_UNROLL(16)
    for (int c = 0; c < kColumns; ++c) {
      v[c] = kPartial ? LoadN(value + c * kLanes, lanes) : Load(value + c * kLanes);
      if constexpr (kFetch)
        if (OpensLine<T>(c * kLanes)) PrefetchL2(next + Element<T>::Bytes(c * kLanes));
    }
    HWY_UNROLL(16)
    for (int r = 0; r < R; ++r) {
      const Vec weight = hn::Set(df, weights[j * R + r]);
      HWY_UNROLL(16)
      for (int c = 0; c < kColumns; ++c) sums[r * kColumns + c] = hn::MulAdd(weight, v[c], sums[r * kColumns + c]);
    }
  }
  HWY_UNROLL(16)
  for (int r = 0; r < R; ++r) {
    HWY_UNROLL(16)
    for (int c = 0; c < kColumns; ++c) hn::Store(sums[r * kColumns + c], df, out + r * out_stride + c * kLanes);
  }
}

template <typename T, int R, bool kFetch>
HWY_INLINE void WeightRows(const float* HWY_RESTRICT weights, typename Element<T>::Pointer values, int64_t stride,
                           int64_t count, int64_t head_size, const Fetch& fetch, const float* rescale,
                           float* HWY_RESTRICT out, int64_t out_stride) {
  // As many accumulators as the target has registers for: 16 of 32, or 8 of 16.
  constexpr int kAccumulators = kLanes == 16 ? 16 : 8;
  constexpr int kColumns = std::clamp(kAccumulators / R, 1, 8);
  // The strip at column d fetches the same columns of the next rows.
  const auto strip = [&](int64_t d)
                         HWY_ATTR { return Fetch{fetch.rows + Element<T>::Bytes(d), fetch.stride_bytes, fetch.count}; };
  int64_t d = 0;
  for (; d + static_cast<int64_t>(kColumns * kLanes) <= head_size; d += kColumns * kLanes)
    WeightStrip<T, R, kColumns, false, kFetch>(weights, values + d, stride, count, strip(d), 0, rescale, out + d,
                                               out_stride);
  for (; d + static_cast<int64_t>(kLanes) <= head_size; d += kLanes)
    WeightStrip<T, R, 1, false, kFetch>(weights, values + d, stride, count, strip(d), 0, rescale, out + d, out_stride);
  if (d < head_size)
    WeightStrip<T, R, 1, true, kFetch>(weights, values + d, stride, count, strip(d), head_size - d, rescale, out + d,
                                       out_stride);
}

// weights  [count][R]
// values   rows of Dv at `stride` elements
// rescale  [R] factors of the sums in out, or null
// out      [R][out_stride], zero beyond Dv
template <typename T, int R>
void WeightTile(const float* HWY_RESTRICT weights, const void* HWY_RESTRICT value_rows, int64_t stride, int64_t count,
                int64_t head_size, const Fetch& fetch, const float* rescale, float* HWY_RESTRICT out,
                int64_t out_stride) {
  const auto values = Element<T>::From(value_rows);
  if (fetch.count > 0)
    WeightRows<T, R, true>(weights, values, stride, count, head_size, fetch, rescale, out, out_stride);
  else
    WeightRows<T, R, false>(weights, values, stride, count, head_size, fetch, rescale, out, out_stride);
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
