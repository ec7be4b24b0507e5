// Per-target: the kernel of scores of int8 and int4 caches where the target multiplies bytes, four at a time, and what
// it has in common with that of weights (weight_digits-inl.h).
//
// Codes stay bytes. The other side, queries and weights, is cut into kDigits digits of 8 bits, on a scale of its own
// for every query row and for every row's weights of one stretch of keys: 24 bits, as many as f32 has. A product of a
// digit and four codes is exact, and so is its sum; the digits' sums meet in f32.
//
// A scale that is shared loses what is small beside the largest. Where that could be seen, f32 multiplies instead
// (MayScore, MayWeight), or double precision (exact-inl.h): whatever the weights and the channels are, the result is
// nearly that of f32.
#if defined(KVSHARE_ATTENTION_DIGITS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_DIGITS_INL_H_
#undef KVSHARE_ATTENTION_DIGITS_INL_H_
#else
#define KVSHARE_ATTENTION_DIGITS_INL_H_
#endif

#include <algorithm>
#include <cmath>

#include "attention/byte_products-inl.h"
#include "attention/columns-inl.h"
#include "attention/exact-inl.h"
#include "attention/fetch-inl.h"
#include "attention/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

inline constexpr int kDigits = 3;
inline constexpr int64_t kQuad = 4;                       // codes a product takes, adjacent channels of K or keys of V
inline constexpr int64_t kQuadChannels = kQuad * kLanes;  // channels of a vector

// Vectors of kLanes quads of a row of D channels; floats that a packed query row takes: of every digit as many, and
// what their sums begin with.
constexpr int64_t QuadVectors(int64_t head_size) { return (head_size + kQuadChannels - 1) / kQuadChannels; }
constexpr int64_t DigitStride(int64_t head_size) { return (kDigits * QuadVectors(head_size) + 1) * kLanes; }

// Whether scores of digits are as right as those of f32: `step` is what one of the last digit is worth in a score,
// times one code. Rounding costs a score a third of a step, times half the largest code, times the root of the
// channels; that is to stay under 1e-5.
template <typename T>
bool MayScore(float step, int64_t head_size) {
  return step * kMostCode<T> * std::sqrt(static_cast<float>(head_size)) < 5e-5F;
}

#if KVSHARE_BYTE_DOTS

inline constexpr int kPass = 4;  // query rows, whose sums of digits fill 12 registers a vector of keys or of V
inline constexpr int64_t kBlockKeys = kScoreQuadVectors * kLanes;  // keys packed at a time

// Bytes of kQuadChannels channels, or the first n of them.
HWY_INLINE hn::Vec<I8> LoadCodes(const int8_t* p) { return hn::LoadU(I8(), p); }
HWY_INLINE hn::Vec<I8> LoadCodesN(const int8_t* p, size_t n) { return hn::LoadN(I8(), p, n); }
HWY_INLINE hn::Vec<I8> CodesOfPairs(hn::Vec<U8> pairs) {
  return hn::Sub(hn::BitCast(I8(), SplitPairs(U8(), pairs)), hn::Set(I8(), 8));
}
HWY_INLINE hn::Vec<I8> LoadCodes(I4Pointer p) {
  return CodesOfPairs(hn::ResizeBitCast(U8(), hn::LoadU(hn::Half<U8>(), p.pairs)));
}
HWY_INLINE hn::Vec<I8> LoadCodesN(I4Pointer p, size_t n) {
  return hn::IfThenElseZero(hn::FirstN(I8(), n), CodesOfPairs(hn::LoadN(U8(), p.pairs, (n + 1) / 2)));
}

// Block b of v[k] becomes block k of v[b].
HWY_INLINE void TransposeBlocks([[maybe_unused]] Vec (&v)[4]) {
#if !HWY_TARGET_IS_NEON  // whose vectors are one block
  const F32 df;
  const Vec lower02 = hn::ConcatLowerLower(df, v[2], v[0]);
  const Vec lower13 = hn::ConcatLowerLower(df, v[3], v[1]);
  const Vec upper02 = hn::ConcatUpperUpper(df, v[2], v[0]);
  const Vec upper13 = hn::ConcatUpperUpper(df, v[3], v[1]);
  v[0] = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(lower13), lower02);
  v[1] = hn::OddEvenBlocks(lower13, hn::SwapAdjacentBlocks(lower02));
  v[2] = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(upper13), upper02);
  v[3] = hn::OddEvenBlocks(upper13, hn::SwapAdjacentBlocks(upper02));
#endif
}

// columns[g] is what TransposeQuads makes of rows 4g to 4g + 3, of kLanes rows: lane i of all rows goes to
// packed + i * stride.
HWY_INLINE void StoreColumns(const Vec (&columns)[4][4], int64_t stride, float* HWY_RESTRICT packed) {
  HWY_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    Vec blocks[4] = {columns[0][i], columns[1][i], columns[2][i], columns[3][i]};
    TransposeBlocks(blocks);
    HWY_UNROLL(4)
    for (size_t b = 0; b < kLanes / 4; ++b) hn::Store(blocks[b], F32(), packed + (4 * b + i) * stride);
  }
}

// The number that the sums of a lane's digits are together.
HWY_INLINE Vec SumOfDigits(Sums low, Sums middle, Sums high) {
  const F32 df;
  const Vec lower = hn::MulAdd(hn::ConvertTo(df, middle), hn::Set(df, 256.0F), hn::ConvertTo(df, low));
  return hn::MulAdd(hn::ConvertTo(df, high), hn::Set(df, 65536.0F), lower);
}

// A row of `count` <= kMostDigitChannels queries in f32 becomes digits in place, [kDigits][QuadVectors][kLanes] quads
// and one more vector; returns what its scores must be multiplied by. Where codes are multiplied with 128 added, sums
// begin with what takes that back.
inline float PackQueryDigits(float* row, int64_t count) {
  const F32 df;
  const I32 di;
  constexpr int32_t kMost = 127 << 16;  // three digits from -128 to 127 can say a little more
  Vec most = hn::Zero(df);
  Vec poison = hn::Zero(df);  // NaN if any of them is not finite, which no code can say
  for (int64_t d = 0; d < count; d += kLanes) {
    const Vec q = hn::LoadN(df, row + d, std::min<int64_t>(kLanes, count - d));
    most = hn::Max(most, hn::Abs(q));
    poison = hn::MulAdd(q, hn::Zero(df), poison);
  }
  const float largest = hn::ReduceMax(df, most);
  const Vec to_code = hn::Set(df, largest > 0 ? kMost / largest : 0.0F);
  HWY_ALIGN int32_t code[kMostDigitChannels + kQuadChannels];
  const int64_t padded = QuadVectors(count) * kQuadChannels;
  for (int64_t d = 0; d < padded; d += kLanes) {
    const Vec q = d < count ? hn::LoadN(df, row + d, std::min<int64_t>(kLanes, count - d)) : hn::Zero(df);
    hn::Store(hn::NearestInt(hn::Mul(q, to_code)), di, code + d);
  }
  auto* digits = reinterpret_cast<int8_t*>(row);
  const int64_t last = kDigits * padded;
  auto* begins = reinterpret_cast<int32_t*>(digits + last);
  for (int digit = 0; digit < kDigits; ++digit, digits += padded) {
    auto sum = hn::Zero(di);
    for (int64_t d = 0; d < padded; d += kLanes) {
      const auto rest = hn::Load(di, code + d);
      const auto low = hn::ShiftRight<24>(hn::ShiftLeft<24>(rest));  // from -128 to 127
      hn::StoreU(hn::DemoteTo(hn::Rebind<int8_t, I32>(), low), hn::Rebind<int8_t, I32>(), digits + d);
      hn::Store(hn::ShiftRight<8>(hn::Sub(rest, low)), di, code + d);
      sum = hn::Add(sum, low);
    }
    begins[digit] = kSignedProducts ? 0 : -128 * hn::ReduceSum(di, sum);
  }
  return largest / kMost + hn::ReduceSum(df, poison);
}

// Codes as products take them.
HWY_INLINE Vec ForProducts(hn::Vec<I8> codes) {
  return hn::BitCast(F32(), kSignedProducts ? codes : hn::Xor(codes, hn::Set(I8(), -128)));
}

// Quads of kLanes keys: [head_size / kQuad rounded up to kLanes][stride / kLanes][kLanes]. Brings the rows `next` into
// L2, and the rows `ahead` bytes after the keys'.
template <typename T>
HWY_INLINE void PackKeyQuads(const typename Element<T>::Pointer (&key)[kLanes], int64_t head_size, int64_t stride,
                             const char* const (&next)[kLanes], int64_t ahead, float* HWY_RESTRICT packed) {
  constexpr int kBlocks = kLanes / 4;
  for (int64_t c = 0; c < head_size; c += kQuadChannels, packed += kLanes * stride) {
    const size_t n = std::min(kQuadChannels, head_size - c);
    Vec columns[4][4];
    HWY_UNROLL(4)
    for (int g = 0; g < kBlocks; ++g) {
      Vec rows[4];
      HWY_UNROLL(4)
      for (int k = 0; k < 4; ++k) {
        const auto codes = n == kQuadChannels ? LoadCodes(key[4 * g + k] + c) : LoadCodesN(key[4 * g + k] + c, n);
        rows[k] = ForProducts(codes);
        if (OpensLine<T>(c, kQuadChannels)) {
          PrefetchL2(next[4 * g + k] + Element<T>::Bytes(c));
          PrefetchL2(static_cast<const char*>(Element<T>::Address(key[4 * g + k])) + ahead + Element<T>::Bytes(c));
        }
      }
      TransposeQuads(rows[0], rows[1], rows[2], rows[3], columns[g]);
    }
    StoreColumns(columns, stride, packed);
  }
}

// The products of one vector of quads of every digit and row with kVectors vectors of packed keys each.
template <int kVectors>
HWY_INLINE void AddScoreQuads(const int32_t* HWY_RESTRICT q, int64_t digit, const float* HWY_RESTRICT packed,
                              Sums (&sums)[kVectors][kDigits][kPass]) {
  const F32 df;
  const I32 di;
#if HWY_TARGET_IS_NEON
  static_assert(kVectors == 1);
  hn::Vec<I8> keys[kLanes];
  HWY_UNROLL(4)
  for (size_t lane = 0; lane < kLanes; ++lane) keys[lane] = hn::BitCast(I8(), hn::Load(df, packed + lane * kLanes));
  HWY_UNROLL(3)
  for (int g = 0; g < kDigits; ++g) {
    HWY_UNROLL(4)
    for (int r = 0; r < kPass; ++r) {
      const auto quads = hn::BitCast(I8(), hn::Load(di, q + g * digit + r * kLanes));
      AddProductsOfLane<0>(keys[0], quads, sums[0][g][r]);
      AddProductsOfLane<1>(keys[1], quads, sums[0][g][r]);
      AddProductsOfLane<2>(keys[2], quads, sums[0][g][r]);
      AddProductsOfLane<3>(keys[3], quads, sums[0][g][r]);
    }
  }
#else
  HWY_UNROLL(4)
  for (size_t lane = 0; lane < kLanes; ++lane, packed += kVectors * kLanes) {
    hn::Vec<I8> keys[kVectors];
    HWY_UNROLL(2)
    for (int v = 0; v < kVectors; ++v) keys[v] = hn::BitCast(I8(), hn::Load(df, packed + v * kLanes));
    HWY_UNROLL(3)
    for (int g = 0; g < kDigits; ++g) {
      HWY_UNROLL(4)
      for (int r = 0; r < kPass; ++r) {
        const auto quad = hn::BitCast(I8(), hn::Set(di, q[g * digit + r * kLanes + lane]));
        HWY_UNROLL(2)
        for (int v = 0; v < kVectors; ++v) AddProducts(keys[v], quad, sums[v][g][r]);
      }
    }
  }
#endif
}

// kPass rows from `first` on against kVectors vectors of packed keys.
template <int R, int kVectors>
HWY_INLINE void ScoreQuads(const float* HWY_RESTRICT query, int first, const float* HWY_RESTRICT packed,
                           int64_t head_size, const float* factors, float* HWY_RESTRICT scores) {
  const F32 df;
  const I32 di;
  const int64_t vectors = QuadVectors(head_size);
  const auto* begins = reinterpret_cast<const int32_t*>(query + (kDigits * vectors * R + first) * kLanes);
  Sums sums[kVectors][kDigits][kPass];
  HWY_UNROLL(2)
  for (int v = 0; v < kVectors; ++v) {
    HWY_UNROLL(3)
    for (int g = 0; g < kDigits; ++g) {
      HWY_UNROLL(4)
      for (int r = 0; r < kPass; ++r) sums[v][g][r] = hn::Set(di, begins[r * kLanes + g]);
    }
  }
  const auto* q = reinterpret_cast<const int32_t*>(query + first * kLanes);
  for (int64_t vector = 0; vector < vectors; ++vector, q += R * kLanes, packed += kVectors * kLanes * kLanes)
    AddScoreQuads<kVectors>(q, vectors * R * kLanes, packed, sums);
  HWY_UNROLL(2)
  for (int v = 0; v < kVectors; ++v) {
    Vec rows[kPass];
    HWY_UNROLL(4)
    for (int r = 0; r < kPass; ++r)
      rows[r] = hn::Mul(SumOfDigits(sums[v][0][r], sums[v][1][r], sums[v][2][r]), hn::Set(df, factors[first + r]));
    ForEachColumn(rows[0], rows[1], rows[2], rows[3], [&](int64_t lane, hn::Vec<Quad> column) HWY_ATTR {
      hn::StoreU(column, Quad(), scores + (v * kLanes + lane) * R + first);
    });
  }
}

// ScoreTile of tile-inl.h, of queries that PackQueryDigits packed.
template <typename T, int R>
KVSHARE_BYTE_DOTS_ATTR void ScoreDigits(const float* HWY_RESTRICT query, const void* HWY_RESTRICT key_rows,
                                        int64_t stride, int64_t count, int64_t head_size, const Fetch& fetch,
                                        const float* factors, float* HWY_RESTRICT scores) {
  const auto keys = Element<T>::From(key_rows);
  HWY_ALIGN float packed[kMostDigitChannels / kQuad * kBlockKeys];
  for (int64_t j = 0; j < count; j += kBlockKeys) {
    const int vectors = count - j > static_cast<int64_t>(kLanes) ? kScoreQuadVectors : 1;
    for (int v = 0; v < vectors; ++v) {
      typename Element<T>::Pointer key[kLanes];
      const char* next[kLanes];
      for (size_t k = 0; k < kLanes; ++k) {
        const int64_t at = j + v * kLanes + k;
        key[k] = keys + std::min(at, count - 1) * stride;
        next[k] = fetch.Row(at, Element<T>::Address(key[k]));
      }
      const int64_t ahead = j + 2 * kBlockKeys <= count ? Element<T>::Bytes(kBlockKeys * stride) : 0;
      PackKeyQuads<T>(key, head_size, vectors * kLanes, next, ahead, packed + v * kLanes);
    }
    for (int first = 0; first < R; first += kPass) {
      if (vectors == kScoreQuadVectors)
        ScoreQuads<R, kScoreQuadVectors>(query, first, packed, head_size, factors, scores + j * R);
      else
        ScoreQuads<R, 1>(query, first, packed, head_size, factors, scores + j * R);
    }
  }
}

#endif  // KVSHARE_BYTE_DOTS

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
