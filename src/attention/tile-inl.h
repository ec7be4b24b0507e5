// Per-target: the two tile kernels, where nearly all time goes. R query rows share every load of K and of V. P is how
// they multiply, by f32 FMA or by dot products of 16 bits (products-inl.h).
//
// ScoreTile   S[key][row] = q[row] . k[key]   summed along D with one accumulator a (key, row) pair, so that K is read
//             as it lies: no packing, no transposition. A tree of shuffles turns kLanes accumulators into one vector
//             whose lanes are (key, row).
// WeightTile  o[row][:] += S[key][row] * v[key][:]   a few columns of V at a time, each line of V touched once.
//
// Reading (tuning.h) says how both walk through a tile and what they bring meanwhile. The hardware prefetcher alone
// does not do it: without, decode at T = 512 takes twice as long.
#if defined(KVSHARE_ATTENTION_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_TILE_INL_H_
#undef KVSHARE_ATTENTION_TILE_INL_H_
#else
#define KVSHARE_ATTENTION_TILE_INL_H_
#endif

#include <algorithm>
#include <type_traits>

#include "attention/fetch-inl.h"
#include "attention/load-inl.h"
#include "attention/products-inl.h"
#include "attention/spread-inl.h"
#include "attention/tuning-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

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
HWY_INLINE Vec SumEach(const Vec* sums) {
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

// kStream: how many rows further on the kernels bring theirs.
template <typename P>
int64_t KeyRowsAhead(int64_t head_size) {
  return std::max<int64_t>(2, kKeyBytesAhead / std::max<int64_t>(1, Element<typename P::Type>::Bytes(head_size)));
}
// Rows that the kernel of weights takes at a time: whole cells, and whole vectors of weights.
template <typename P, int R>
int64_t BlockRows(int64_t head_size) {
  constexpr int64_t kStep = std::max<int64_t>(P::kElements, kLanes / R);
  const int64_t rows = kValueBlockBytes / std::max<int64_t>(1, Element<typename P::Type>::Bytes(head_size));
  return RoundUp(std::max(rows, kLeastBlockCells * P::kElements), kStep);
}
template <typename P, int R>
int64_t ValueRowsAhead(int64_t head_size) {
  return kValueBlocksAhead * BlockRows<P, R>(head_size);
}

// query    [cells of D / kLanes rounded up][R][kLanes] cells, zero beyond D
// keys     rows of T at `stride` elements, `count` of them
// factors  [kStateLanes<R>] what the rows' sums are multiplied by, if P has factors
// scores   [count rounded up to full vectors][R]; what lanes past count hold means nothing
template <typename P, int R, Reading kReading, bool kFetch>
HWY_INLINE void ScoreRows(const float* HWY_RESTRICT query, typename P::Pointer keys, int64_t stride, int64_t count,
                          int64_t head_size, const Fetch& fetch, const float* factors, float* HWY_RESTRICT scores) {
  using T = typename P::Type;
  const F32 df;
  constexpr bool kSpread = kReading == Reading::kSpread;
  constexpr bool kAhead = kFetch && kReading == Reading::kTileAhead;
  constexpr bool kStream = kFetch && kReading == Reading::kStream;
  constexpr int kMostSums = kSpread ? kLanes : kScoreVectors * kLanes;
  constexpr int kRows = kSpread ? kSpreadRows<P, R> : std::min(R, kMostSums);  // rows a pass
  constexpr int kKeys = std::min(kMostSums / kRows, kScoreKeys);               // keys a pass
  constexpr int kSums = kKeys * kRows;
  constexpr int kVectors = kSums / kLanes;
  constexpr int64_t kStep = P::kElements * kLanes;
  const int64_t whole = head_size / kStep * kStep;
  const size_t rest = head_size - whole;
  // kStream: of the kSums products of a step over D every kLineSlots-th brings a line; of shorter steps those that
  // open a line bring one a key.
  constexpr int64_t kStepBytes = Element<T>::Bytes(kKeys * kStep);
  constexpr int kLineSlots = std::max<int>(1, kSums * kLine / kStepBytes);
  static_assert(!kStream || kRows == R);
  static_assert(kVectors == 1 || kRows == R);  // scores of a pass lie side by side
  const int64_t steps = (count + kKeys - 1) / kKeys;
  for (int64_t step = 0; step < steps; ++step) {
    int64_t at[kKeys];
    typename P::Pointer key[kKeys];
    [[maybe_unused]] const char* next[kKeys];
    for (int k = 0; k < kKeys; ++k) {
      const int64_t j = kSpread ? k * steps + step : step * kKeys + k;
      at[k] = std::min(j, count - 1);
      key[k] = keys + at[k] * stride;
      if constexpr (kAhead) next[k] = fetch.Row(j, Element<T>::Address(key[k]));
    }
    // kStream: the next line to bring, past the last rows those at hand once more.
    [[maybe_unused]] const char* line = static_cast<const char*>(Element<T>::Address(key[0]));
    if constexpr (kReading == Reading::kStream) {
      if (fetch.Has(step * kKeys, kKeys)) {
        OpenPages(fetch, step * kKeys, kKeys);
        if (kStream)
          line = fetch.rows + step * kKeys * fetch.stride_bytes;
        else
          FetchRows(fetch, step * kKeys, kKeys, Element<T>::Bytes(head_size));
      }
    }
    for (int first = 0; first < R; first += kRows) {
      typename P::Sum sums[kSums];
      HWY_UNROLL(16)
      for (int i = 0; i < kSums; ++i) sums[i] = P::Zero();
      const float* HWY_RESTRICT q = query + first * kLanes;
      const auto add_step = [&](int64_t d, [[maybe_unused]] bool opens_line) HWY_ATTR {
        typename P::Factor k_vectors[kKeys];
        HWY_UNROLL(16)
        for (int k = 0; k < kKeys; ++k) {
          k_vectors[k] = P::LoadKey(key[k] + d);
          if constexpr (kSpread && kRows > 1) KeepInRegister(k_vectors[k]);
          if constexpr (kAhead)
            if (opens_line) PrefetchL2(next[k] + Element<T>::Bytes(d));
        }
        HWY_UNROLL(16)
        for (int r = 0; r < kRows; ++r) {
          Vec q_cells = hn::Load(df, q + r * kLanes);
          if constexpr (kKeys > 1) KeepInRegister(q_cells);
          HWY_UNROLL(16)
          for (int k = 0; k < kKeys; ++k) {
            if constexpr (kStream)
              if (kStepBytes >= kLine ? (r * kKeys + k) % kLineSlots == 0 : r == 0 && opens_line)
                line = FetchWith(k_vectors[k], line);
            sums[k * kRows + r] = P::MulAdd(P::FromCells(q_cells), k_vectors[k], sums[k * kRows + r]);
          }
        }
        q += R * kLanes;
      };
      constexpr int kTurnSteps = ScoreUnroll(kSums, kKeys, !std::is_same_v<T, float>);
      constexpr int64_t kTurn = kTurnSteps * kStep;
      constexpr bool kWholeLines = Element<T>::Bytes(kTurn) % 64 == 0;
      int64_t d = 0;
      for (; d + kTurn <= whole; d += kTurn) {
        HWY_UNROLL(4)
        for (int u = 0; u < kTurnSteps; ++u)
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
      Vec each[kSums];
      HWY_UNROLL(16)
      for (int i = 0; i < kSums; ++i) each[i] = P::ToF32(sums[i]);
      HWY_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) {
        Vec total = SumEach(each + v * kLanes);
        if constexpr (P::kScoreFactors)
          total = hn::Mul(total, hn::Load(df, factors + first + v * kLanes % kStateLanes<kRows>));
        if constexpr (kSpread) {
          HWY_ALIGN float lanes[kLanes];
          hn::Store(total, df, lanes);
          for (int k = 0; k < kKeys; ++k) std::copy_n(lanes + k * kRows, kRows, scores + at[k] * R + first);
        } else {
          hn::Store(total, df, scores + step * kKeys * R + first + v * kLanes);
        }
      }
    }
  }
}

template <typename P, int R, Reading kReading>
void ScoreTile(const float* HWY_RESTRICT query, const void* HWY_RESTRICT key_rows, int64_t stride, int64_t count,
               int64_t head_size, const Fetch& fetch, const float* factors, float* HWY_RESTRICT scores) {
  const auto keys = Element<typename P::Type>::From(key_rows);
  const int64_t row_bytes = Element<typename P::Type>::Bytes(head_size);
  // Fetching costs a load port a line even where the line is at hand, so blocks after the first do without.
  if constexpr (kReading != Reading::kSpread) {
    if (kReading == Reading::kStream ? fetch.IsDense(row_bytes) : fetch.count > 0)
      return ScoreRows<P, R, kReading, true>(query, keys, stride, count, head_size, fetch, factors, scores);
  }
  ScoreRows<P, R, kReading, false>(query, keys, stride, count, head_size, fetch, factors, scores);
}

// Cell i of a row of whole vectors, in each lane. NEON multiplies by a lane of the vector, which is loaded once.
HWY_INLINE Vec CellOf(const float* cells, size_t i) {
#if HWY_TARGET_IS_NEON
  return hn::Set(F32(), hn::LoadU(F32(), cells + i / kLanes * kLanes).raw[i % kLanes]);
#else
  return hn::Set(F32(), cells[i]);
#endif
}

// The sum that a vector of `out` begins with, and where the kColumns sums of a row end.
HWY_INLINE Vec BeginSum(const float* out, const float* rescale) {
  const Vec sum = hn::Load(F32(), out);
  return rescale == nullptr ? sum : hn::Mul(sum, hn::Set(F32(), *rescale));
}
template <int kColumns>
HWY_INLINE void EndSums(const Vec* sums, float* out) {
  HWY_UNROLL(8)
  for (int c = 0; c < kColumns; ++c) hn::Store(sums[c], F32(), out + c * kLanes);
}

// kRows of the R rows, and one strip of kColumns vectors of V; `lanes` columns of it if kPartial. Brings the strip's
// columns of the rows of `fetch` (kTileAhead), or as many lines from `line` on as it reads itself (kStream). Returns
// the line after those.
template <typename P, int R, int kRows, int kColumns, bool kPartial, Reading kReading, bool kFetch>
HWY_INLINE const char* WeightStrip(const float* HWY_RESTRICT weights, typename P::Pointer values, int64_t stride,
                                   int64_t count, const Fetch& fetch, const char* line, size_t lanes,
                                   const float* rescale, float* HWY_RESTRICT out, int64_t out_stride) {
  using T = typename P::Type;
  const F32 df;
  typename P::Sum sums[kRows * kColumns];
  HWY_UNROLL(16)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(16)
    for (int c = 0; c < kColumns; ++c)
      sums[r * kColumns + c] = BeginSum(out + r * out_stride + c * kLanes, rescale == nullptr ? nullptr : rescale + r);
  }
  // The keys of one cell, the last of them `to_last` elements from the first.
  constexpr bool kAhead = kFetch && kReading == Reading::kTileAhead;
  constexpr bool kStream = kFetch && kReading == Reading::kStream;
  // kStream: of the lines of a cell, every kLineSlots-th column brings one.
  constexpr int kCellLines = std::max<int>(1, Element<T>::Bytes(P::kElements * kColumns * kLanes) / kLine);
  constexpr int kLineSlots = std::max(1, kColumns / kCellLines);
  const auto add_cell = [&](int64_t to_last) HWY_ATTR {
    typename P::Factor v[kColumns];
    P::template LoadValues<kColumns, kPartial>(values, values + to_last, lanes, v);
    HWY_UNROLL(16)
    for (int r = 0; r < kRows; ++r) {
      const auto weight = P::FromCells(R < static_cast<int>(kLanes) ? hn::Set(df, weights[r]) : CellOf(weights, r));
      HWY_UNROLL(16)
      for (int c = 0; c < kColumns; ++c) {
        if constexpr (kStream)
          if (r == 0 && c % kLineSlots == 0) line = FetchWith(v[c], line);
        sums[r * kColumns + c] = P::MulAdd(weight, v[c], sums[r * kColumns + c]);
      }
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
    if constexpr (kAhead) {
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
  for (int r = 0; r < kRows; ++r) EndSums<kColumns>(sums + r * kColumns, out + r * out_stride);
  return line;
}

template <typename P, int R, Reading kReading, bool kFetch>
HWY_INLINE void WeightRows(const float* HWY_RESTRICT weights, typename P::Pointer values, int64_t stride, int64_t count,
                           int64_t head_size, const Fetch& fetch, const float* rescale, float* HWY_RESTRICT out,
                           int64_t out_stride) {
  // Rather two columns of few rows than one of many, since a load then feeds two sums.
  constexpr int kSums = NarrowSums(R, !std::is_same_v<typename P::Type, float>);
  constexpr int kRows = std::min(R, kSums / 2);
  constexpr int kLeast = P::kElements;  // vectors of V that a load gives
  constexpr int kColumns = std::clamp(kSums / kRows, kLeast, 8);
  const char* line = fetch.rows;
  // A strip fetches with its first rows. kTileAhead: its own columns of the next rows; whole lines of them.
  const auto strip = [&](int64_t d, auto columns, auto partial, size_t lanes) HWY_ATTR {
    constexpr int kStripColumns = decltype(columns)::value;
    constexpr bool kPartial = decltype(partial)::value;
    const bool fetches =
        kFetch && kReading == Reading::kTileAhead && OpensLine<typename P::Type>(d, kStripColumns * kLanes);
    const Fetch rows =
        fetches ? Fetch{fetch.rows + Element<typename P::Type>::Bytes(d), fetch.stride_bytes, fetch.count} : Fetch{};
    line = WeightStrip<P, R, kRows, kStripColumns, kPartial, kReading, kFetch>(
        weights, values + d, stride, count, rows, line, lanes, rescale, out + d, out_stride);
    for (int r = kRows; r < R; r += kRows)
      WeightStrip<P, R, kRows, kStripColumns, kPartial, kReading, false>(
          weights + r, values + d, stride, count, rows, line, lanes, rescale == nullptr ? nullptr : rescale + r,
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

// WeightTile where V is a stream: in blocks of rows, all strips of V on a block before the next.
template <typename P, int R>
HWY_INLINE void WeightBlocks(float* HWY_RESTRICT weights, typename P::Pointer values, int64_t stride, int64_t count,
                             int64_t head_size, const Fetch& fetch, const float* rescale, float* HWY_RESTRICT out,
                             int64_t out_stride) {
  if (rescale != nullptr) RescaleSums<R>(rescale, head_size, out, out_stride);
  const int64_t row_bytes = Element<typename P::Type>::Bytes(head_size);
  const int64_t block = BlockRows<P, R>(head_size);
  const auto weight = [&](int64_t j, int64_t rows, auto fetches) HWY_ATTR {
    WeightRows<P, R, Reading::kStream, decltype(fetches)::value>(weights + j * R, values + j * stride, stride, rows,
                                                                 head_size, fetch.From(j), nullptr, out, out_stride);
  };
  for (int64_t j = 0; j < count; j += block) {
    const int64_t rows = std::min(block, count - j);
    P::template PackWeights<R>(weights + j * R, rows);
    if (fetch.count > 0) OpenPages(fetch, j, rows);
    if (fetch.IsDense(row_bytes) && fetch.Has(j, rows)) {
      weight(j, rows, std::true_type());
    } else {
      FetchRows(fetch, j, rows, row_bytes);
      weight(j, rows, std::false_type());
    }
  }
}

// weights  [count][R]; what they hold is used up
// values   rows of Dv at `stride` elements
// rescale  [R] factors of the sums in out, or null
// out      [R][out_stride], zero beyond Dv
template <typename P, int R, Reading kReading>
void WeightTile(float* HWY_RESTRICT weights, const void* HWY_RESTRICT value_rows, int64_t stride, int64_t count,
                int64_t head_size, const Fetch& fetch, const float* rescale, float* HWY_RESTRICT out,
                int64_t out_stride) {
  const auto values = Element<typename P::Type>::From(value_rows);
  if constexpr (kReading == Reading::kSpread) {
    WeightSpread<P, R>(weights, values, stride, count, head_size, rescale, out, out_stride);
  } else {
    if constexpr (kReading == Reading::kStream) {
      WeightBlocks<P, R>(weights, values, stride, count, head_size, fetch, rescale, out, out_stride);
    } else {
      P::template PackWeights<R>(weights, count);
      if (fetch.count > 0)
        WeightRows<P, R, kReading, true>(weights, values, stride, count, head_size, fetch, rescale, out, out_stride);
      else
        WeightRows<P, R, kReading, false>(weights, values, stride, count, head_size, fetch, rescale, out, out_stride);
    }
  }
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
