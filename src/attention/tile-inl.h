// Per-target: the two tile kernels, where nearly all time goes. R query rows share every load of K and of V. P is how
// they multiply, by f32 FMA or by dot products of 16 bits (products-inl.h).
//
// ScoreTile   S[key][row] = q[row] . k[key]   summed along D with one accumulator a (key, row) pair, so that K is read
//             as it lies: no packing, no transposition. One tree of shuffles turns kLanes accumulators into one vector
//             whose lanes are (key, row).
// WeightTile  o[row][:] += S[key][row] * v[key][:]   a few columns of V at a time, each line of V touched once.
//
// Both bring rows that are wanted next into L2 while they work, a line a step: ScoreTile the V rows, WeightTile the
// next K rows. The hardware prefetcher does not do it: without, decode at T = 512 takes twice as long.
//
// Where kSpreads<P> they read a tile as several streams instead: the keys of a step lie a part of the tile apart, and
// the hardware prefetcher follows every stream. On Zen 3 one stream brings 15 GB/s, four bring 23, and software
// prefetches keep it at 13.
#if defined(KVSHARE_ATTENTION_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_TILE_INL_H_
#undef KVSHARE_ATTENTION_TILE_INL_H_
#else
#define KVSHARE_ATTENTION_TILE_INL_H_
#endif

#include <algorithm>
#include <type_traits>

#include "attention/load-inl.h"
#include "attention/products-inl.h"

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

// Whether element d of a row is the first of its cache line, where a load takes `count`: narrow types have several
// loads a line.
template <typename T>
HWY_INLINE bool OpensLine(int64_t d, int64_t count) {
  return Element<T>::Bytes(count) >= 64 || Element<T>::Bytes(d) % 64 < Element<T>::Bytes(count);
}

// f32, f16 and bf16 on AVX2. Narrower types would take long to convert, for every pass of rows.
template <typename P>
inline constexpr bool kSpreads =
    kLanes == 8 && std::is_same_v<P, Fma<typename P::Type>> && sizeof(typename P::Type) >= sizeof(uint16_t);
// Rows a pass, of R: few leave registers for many streams, many share a conversion.
template <typename P, int R>
inline constexpr int kSpreadRows = std::min(R, sizeof(typename P::Type) == sizeof(float) ? 2 : 4);

// Turns of a loop at once, here and in wide-inl.h. While the core's other thread is at work, instructions are what
// counts: one at a time, AVX2 takes 18 for 8 multiplications here and 24 for 12 there, four at a time 16 and 20.
inline constexpr int kUnroll = 4;
// The same for WeightStrip, whose turns are longer.
inline constexpr int kCellUnroll = 2;

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

// Where a product takes two instructions, loads folded into them, though repeated, do not set the pace.
template <typename P>
inline constexpr bool kFoldsLoads = P::kIntegers && kLanes == 8;

// query    [cells of D / kLanes rounded up][R][kLanes] cells, zero beyond D
// keys     rows of T at `stride` elements, `count` of them
// factors  [kStateLanes<R>] what the rows' sums are multiplied by, if P has factors
// scores   [count rounded up to full vectors][R]; what lanes past count hold means nothing
template <typename P, int R, bool kFetch>
HWY_INLINE void ScoreRows(const float* HWY_RESTRICT query, typename P::Pointer keys, int64_t stride, int64_t count,
                          int64_t head_size, const Fetch& fetch, const float* factors, float* HWY_RESTRICT scores) {
  using T = typename P::Type;
  const F32 df;
  constexpr int kRows = kSpreads<P> ? kSpreadRows<P, R> : std::min<int>(R, kLanes);  // rows a pass
  constexpr int kKeys = kLanes / kRows;                                              // keys a pass
  constexpr int64_t kStep = P::kElements * kLanes;
  const int64_t whole = head_size / kStep * kStep;
  const size_t rest = head_size - whole;
  const int64_t steps = (count + kKeys - 1) / kKeys;
  for (int64_t step = 0; step < steps; ++step) {
    int64_t at[kKeys];
    typename P::Pointer key[kKeys];
    [[maybe_unused]] const char* next[kKeys];
    for (int k = 0; k < kKeys; ++k) {
      const int64_t j = kSpreads<P> ? k * steps + step : step * kKeys + k;
      at[k] = std::min(j, count - 1);
      key[k] = keys + at[k] * stride;
      if constexpr (kFetch) next[k] = fetch.Row(j, Element<T>::Address(key[k]));
    }
    for (int first = 0; first < R; first += kRows) {
      typename P::Sum sums[kLanes];
      HWY_UNROLL(16)
      for (size_t i = 0; i < kLanes; ++i) sums[i] = P::Zero();
      const float* HWY_RESTRICT q = query + first * kLanes;
      const auto add_step = [&](int64_t d, [[maybe_unused]] bool opens_line) HWY_ATTR {
        typename P::Factor k_vectors[kKeys];
        HWY_UNROLL(16)
        for (int k = 0; k < kKeys; ++k) {
          k_vectors[k] = P::LoadKey(key[k] + d);
          if constexpr (kSpreads<P> && kRows > 1) KeepInRegister(k_vectors[k]);
          if constexpr (kFetch)
            if (opens_line) PrefetchL2(next[k] + Element<T>::Bytes(d));
        }
        HWY_UNROLL(16)
        for (int r = 0; r < kRows; ++r) {
          Vec q_cells = hn::Load(df, q + r * kLanes);
          if constexpr (kKeys > 1 && !kFoldsLoads<P>) KeepInRegister(q_cells);
          HWY_UNROLL(16)
          for (int k = 0; k < kKeys; ++k)
            sums[k * kRows + r] = P::MulAdd(P::FromCells(q_cells), k_vectors[k], sums[k * kRows + r]);
        }
        q += R * kLanes;
      };
      constexpr int64_t kTurn = kUnroll * kStep;
      constexpr bool kWholeLines = Element<T>::Bytes(kTurn) % 64 == 0;
      int64_t d = 0;
      for (; d + kTurn <= whole; d += kTurn) {
        HWY_UNROLL(kUnroll)
        for (int u = 0; u < kUnroll; ++u)
          add_step(d + u * kStep, OpensLine<T>((kWholeLines ? 0 : d) + u * kStep, kStep));
      }
      for (; d < whole; d += kStep) add_step(d, OpensLine<T>(d, kStep));
      if (rest != 0) {
        HWY_UNROLL(16)
        for (int k = 0; k < kKeys; ++k) {
          const auto k_vector = P::LoadKeyN(key[k] + whole, rest);
          HWY_UNROLL(16)
          for (int r = 0; r < kRows; ++r)
            sums[k * kRows + r] = P::MulAdd(P::FromCells(hn::Load(df, q + r * kLanes)), k_vector, sums[k * kRows + r]);
        }
      }
      Vec each[kLanes];
      HWY_UNROLL(16)
      for (size_t i = 0; i < kLanes; ++i) each[i] = P::ToF32(sums[i]);
      Vec total = SumEach(each);
      if constexpr (P::kScoreFactors) total = hn::Mul(total, hn::Load(df, factors + first));
      if constexpr (kSpreads<P>) {
        HWY_ALIGN float lanes[kLanes];
        hn::Store(total, df, lanes);
        for (int k = 0; k < kKeys; ++k) std::copy_n(lanes + k * kRows, kRows, scores + at[k] * R + first);
      } else {
        hn::Store(total, df, scores + step * kKeys * R + first);
      }
    }
  }
}

template <typename P, int R>
void ScoreTile(const float* HWY_RESTRICT query, const void* HWY_RESTRICT key_rows, int64_t stride, int64_t count,
               int64_t head_size, const Fetch& fetch, const float* factors, float* HWY_RESTRICT scores) {
  const auto keys = Element<typename P::Type>::From(key_rows);
  // Fetching costs a load port a line even where the line is at hand, so blocks after the first do without.
  if constexpr (!kSpreads<P>) {
    if (fetch.count > 0) return ScoreRows<P, R, true>(query, keys, stride, count, head_size, fetch, factors, scores);
  }
  ScoreRows<P, R, false>(query, keys, stride, count, head_size, fetch, factors, scores);
}

// The sum that a vector of `out` begins with, and how the kColumns sums of a row end there: sums that are no f32 are
// added after their tile.
template <typename P>
HWY_INLINE typename P::Sum BeginSum(const float* out, const float* rescale) {
  if constexpr (P::kIntegers) {
    return P::Zero();
  } else {
    const Vec sum = hn::Load(F32(), out);
    return rescale == nullptr ? sum : hn::Mul(sum, hn::Set(F32(), *rescale));
  }
}
template <typename P, int kColumns>
HWY_INLINE void EndSums(const typename P::Sum* sums, const float* rescale, const float* factor, float* out) {
  const F32 df;
  if constexpr (P::kIntegers) {
    HWY_UNROLL(8)
    for (int c = 0; c < kColumns; c += 2) {
      Vec added[2] = {P::ToF32(sums[c]), P::ToF32(sums[c + 1])};
      P::OrderColumns(added[0], added[1]);
      HWY_UNROLL(2)
      for (int i = 0; i < 2; ++i) {
        float* at = out + (c + i) * kLanes;
        Vec before = hn::Load(df, at);
        if (rescale != nullptr) before = hn::Mul(before, hn::Set(df, *rescale));
        hn::Store(hn::MulAdd(added[i], hn::Set(df, *factor), before), df, at);
      }
    }
  } else {
    HWY_UNROLL(8)
    for (int c = 0; c < kColumns; ++c) hn::Store(sums[c], df, out + c * kLanes);
  }
}

// kRows of the R rows, and one strip of kColumns vectors of V; `lanes` columns of it if kPartial.
template <typename P, int R, int kRows, int kColumns, bool kPartial, bool kFetch>
HWY_INLINE void WeightStrip(const float* HWY_RESTRICT weights, typename P::Pointer values, int64_t stride,
                            int64_t count, const Fetch& fetch, size_t lanes, const float* rescale, const float* factors,
                            float* HWY_RESTRICT out, int64_t out_stride) {
  using T = typename P::Type;
  const F32 df;
  typename P::Sum sums[kRows * kColumns];
  HWY_UNROLL(16)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(16)
    for (int c = 0; c < kColumns; ++c)
      sums[r * kColumns + c] =
          BeginSum<P>(out + r * out_stride + c * kLanes, rescale == nullptr ? nullptr : rescale + r);
  }
  // The keys of one cell, the last of them `to_last` elements from the first.
  const auto add_cell = [&](int64_t to_last) HWY_ATTR {
    typename P::Factor v[kColumns];
    P::template LoadValues<kColumns, kPartial>(values, values + to_last, lanes, v);
    HWY_UNROLL(16)
    for (int r = 0; r < kRows; ++r) {
      const auto weight = P::FromCells(hn::Set(df, weights[r]));
      HWY_UNROLL(16)
      for (int c = 0; c < kColumns; ++c) sums[r * kColumns + c] = P::MulAdd(weight, v[c], sums[r * kColumns + c]);
    }
    values = values + P::kElements * stride;
    weights += P::kElements * R;
  };
  constexpr int kTurn = kCellUnroll * P::kElements;
  const int64_t to_last = (P::kElements - 1) * stride;
  [[maybe_unused]] const char* next = fetch.rows;
  [[maybe_unused]] const char* const fetched = fetch.rows + fetch.count * fetch.stride_bytes;
  int64_t j = 0;
  for (; j + kTurn <= count; j += kTurn) {
    if constexpr (kFetch) {
      // Not a condition on j, on which g++ would split the loop in two, and copy all sums between them.
      if (next < fetched) {
        HWY_UNROLL(4)
        for (int k = 0; k < kTurn; ++k, next += fetch.stride_bytes) {
          HWY_UNROLL(16)
          for (int c = 0; c < kColumns; ++c)
            if (OpensLine<T>(c * kLanes, kLanes)) PrefetchL2(next + Element<T>::Bytes(c * kLanes));
        }
      }
    }
    HWY_UNROLL(kCellUnroll)
    for (int u = 0; u < kCellUnroll; ++u) add_cell(to_last);
  }
  for (; j < count; j += P::kElements) add_cell(j + P::kElements <= count ? to_last : 0);
  HWY_UNROLL(16)
  for (int r = 0; r < kRows; ++r)
    EndSums<P, kColumns>(sums + r * kColumns, rescale == nullptr ? nullptr : rescale + r, factors + r,
                         out + r * out_stride);
}

template <typename P, int R, bool kFetch>
HWY_INLINE void WeightRows(const float* HWY_RESTRICT weights, typename P::Pointer values, int64_t stride, int64_t count,
                           int64_t head_size, const Fetch& fetch, const float* rescale, const float* factors,
                           float* HWY_RESTRICT out, int64_t out_stride) {
  // As many accumulators as the target has registers for: 16 of 32, or 8 of 16; and rather two columns of few rows than
  // one of many, since a load then feeds two of them.
  constexpr int kAccumulators = kLanes == 16 ? 16 : 8;
  constexpr int kRows = std::min(R, kAccumulators / 2);
  constexpr int kLeast = P::kElements;  // vectors of V that a load gives
  constexpr int kColumns = std::clamp(kAccumulators / kRows, kLeast, 8);
  // The strip at column d fetches the same columns of the next rows, with its first rows; whole lines of them.
  const auto strip = [&](int64_t d, auto columns, auto partial, size_t lanes) HWY_ATTR {
    constexpr int kStripColumns = decltype(columns)::value;
    constexpr bool kPartial = decltype(partial)::value;
    const bool fetches = kFetch && OpensLine<typename P::Type>(d, kStripColumns * kLanes);
    const Fetch rows =
        fetches ? Fetch{fetch.rows + Element<typename P::Type>::Bytes(d), fetch.stride_bytes, fetch.count} : Fetch{};
    WeightStrip<P, R, kRows, kStripColumns, kPartial, kFetch>(weights, values + d, stride, count, rows, lanes, rescale,
                                                              factors, out + d, out_stride);
    for (int r = kRows; r < R; r += kRows)
      WeightStrip<P, R, kRows, kStripColumns, kPartial, false>(weights + r, values + d, stride, count, rows, lanes,
                                                               rescale == nullptr ? nullptr : rescale + r, factors + r,
                                                               out + d + r * out_stride, out_stride);
  };
  using Whole = std::false_type;
  int64_t d = 0;
  for (; d + static_cast<int64_t>(kColumns * kLanes) <= head_size; d += kColumns * kLanes)
    strip(d, std::integral_constant<int, kColumns>(), Whole(), 0);
  for (; d + static_cast<int64_t>(kLeast * kLanes) <= head_size; d += kLeast * kLanes)
    strip(d, std::integral_constant<int, kLeast>(), Whole(), 0);
  if (d < head_size) strip(d, std::integral_constant<int, kLeast>(), std::true_type(), head_size - d);
}

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
  const F32 df;
  if (rescale != nullptr)
    for (int r = 0; r < R; ++r)
      for (int64_t d = 0; d < head_size; d += kLanes) {
        float* at = out + r * out_stride + d;
        hn::Store(hn::Mul(hn::Load(df, at), hn::Set(df, rescale[r])), df, at);
      }
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

// weights  [count][R]; what they hold is used up
// values   rows of Dv at `stride` elements
// rescale  [R] factors of the sums in out, or null
// out      [R][out_stride], zero beyond Dv
template <typename P, int R>
void WeightTile(float* HWY_RESTRICT weights, const void* HWY_RESTRICT value_rows, int64_t stride, int64_t count,
                int64_t head_size, const Fetch& fetch, const float* rescale, float* HWY_RESTRICT out,
                int64_t out_stride) {
  const auto values = Element<typename P::Type>::From(value_rows);
  if constexpr (kSpreads<P>) {
    WeightSpread<P, R>(weights, values, stride, count, head_size, rescale, out, out_stride);
  } else {
    HWY_ALIGN float factors[kStateLanes<R>];
    P::template PackWeights<R>(weights, count, factors);
    if (fetch.count > 0)
      WeightRows<P, R, true>(weights, values, stride, count, head_size, fetch, rescale, factors, out, out_stride);
    else
      WeightRows<P, R, false>(weights, values, stride, count, head_size, fetch, rescale, factors, out, out_stride);
  }
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
