// Per-target: how the tile kernels multiply. Their loops are the same for both ways, and see 32-bit cells only, kept in
// memory as floats, whatever a cell holds:
//
// Fma<T>    a cell is one element, converted to f32; products are added in f32.
// Dots<T>   a cell is two elements of 16 bits, adjacent channels of K or adjacent keys of V, and one instruction
//           multiplies and adds both. bf16 stays as it is, sums in f32; int8 and int4 become int16, sums in i32. The
//           other side, queries and weights, is rounded to the same 16 bits: bf16 exactly as callers' bf16 queries are;
//           int16 on a scale of its own for every query row and for every row's weights of one tile, so that it costs
//           at most 2^-16 of the largest of them.
#if defined(KVSHARE_ATTENTION_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_PRODUCTS_INL_H_
#undef KVSHARE_ATTENTION_PRODUCTS_INL_H_
#else
#define KVSHARE_ATTENTION_PRODUCTS_INL_H_
#endif

#include <algorithm>

#include "attention/load-inl.h"
#include "attention/softmax-inl.h"
#include "attention/tuning-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

using I32 = hn::RebindToSigned<F32>;
using U32 = hn::RebindToUnsigned<F32>;

template <typename T>
struct Fma {
  using Type = T;
  using Pointer = typename Element<T>::Pointer;
  using Factor = Vec;
  using Sum = Vec;
  static constexpr int kElements = 1;  // a cell
  static constexpr bool kScoreFactors = false;
  static constexpr bool kIntegers = false;

  static HWY_INLINE Sum Zero() { return hn::Zero(F32()); }
  static HWY_INLINE Factor FromCells(Vec cells) { return cells; }
  static HWY_INLINE Factor LoadKey(Pointer p) { return Load(p); }
  static HWY_INLINE Factor LoadKeyN(Pointer p, size_t n) { return LoadN(p, n); }
  static HWY_INLINE Vec Cells(Factor factor) { return factor; }
  // kColumns vectors of V, from one key.
  template <int kColumns, bool kPartial>
  static HWY_INLINE void LoadValues(Pointer p, Pointer, size_t n, Factor (&to)[kColumns]) {
    HWY_UNROLL(16)
    for (int c = 0; c < kColumns; ++c) to[c] = kPartial ? LoadN(p + c * kLanes, n) : Load(p + c * kLanes);
  }
  static HWY_INLINE Sum MulAdd(Factor a, Factor b, Sum sum) { return hn::MulAdd(a, b, sum); }
  static HWY_INLINE Vec ToF32(Sum sum) { return sum; }

  // A row of `count` queries in f32 becomes cells in place; returns what its scores must be multiplied by.
  static float PackQuery(float*, int64_t) { return 1; }
  // Weights [count][R] in f32 become cells in place, those of keys j and j + 1 at j where a cell holds two; `factors`
  // [kStateLanes<R>] is what integer sums must be multiplied by.
  template <int R>
  static HWY_INLINE void PackWeights(float*, int64_t, float*) {}
};

// What the two kinds of dot products share.
template <typename T, typename Half>
struct DotsBase {
  using Type = T;
  using Pointer = typename Element<T>::Pointer;
  using D16 = hn::Repartition<Half, F32>;
  using Factor = hn::Vec<D16>;
  using U16 = hn::RebindToUnsigned<D16>;
  static constexpr int kElements = 2;
  static constexpr bool kScoreFactors = true;

  static HWY_INLINE Factor FromCells(Vec cells) { return hn::BitCast(D16(), cells); }
  static HWY_INLINE Vec Cells(Factor factor) { return hn::BitCast(F32(), factor); }
};

template <typename T>
struct Dots;

template <>
struct Dots<hwy::bfloat16_t> : DotsBase<hwy::bfloat16_t, hwy::bfloat16_t> {
  using Sum = Vec;
  static constexpr bool kIntegers = false;

  static HWY_INLINE Sum Zero() { return hn::Zero(F32()); }
  static HWY_INLINE Factor LoadKey(Pointer p) { return hn::LoadU(D16(), p); }
  static HWY_INLINE Factor LoadKeyN(Pointer p, size_t n) { return hn::LoadN(D16(), p, n); }
  // kColumns vectors of pairs, from two keys.
  template <int kColumns, bool kPartial>
  static HWY_INLINE void LoadValues(Pointer p, Pointer q, size_t n, Factor (&to)[kColumns]) {
    const U16 du;
    HWY_UNROLL(16)
    for (int c = 0; c < kColumns; c += 2) {
      const auto load = [&](Pointer at) HWY_ATTR {
        return hn::BitCast(du, kPartial ? LoadKeyN(at + c * kLanes, n) : LoadKey(at + c * kLanes));
      };
      const auto a = load(p);
      const auto b = load(q);
      to[c] = hn::BitCast(D16(), hn::InterleaveWholeLower(du, a, b));
      to[c + 1] = hn::BitCast(D16(), hn::InterleaveWholeUpper(du, a, b));
    }
  }
  static HWY_INLINE Sum MulAdd(Factor a, Factor b, Sum sum) {
    Sum odd = hn::Zero(F32());  // stays zero where there is an instruction
    sum = hn::ReorderWidenMulAccumulate(F32(), a, b, sum, odd);
    return kNativeDotBF16 ? sum : hn::Add(sum, odd);
  }
  static HWY_INLINE Vec ToF32(Sum sum) { return sum; }

  static float PackQuery(float* row, int64_t count) {
    for (int64_t d = 0; d < count; d += 2 * kLanes) {
      const Vec next = d + static_cast<int64_t>(kLanes) < count ? hn::Load(F32(), row + d + kLanes) : hn::Zero(F32());
      hn::Store(Cells(hn::OrderedDemote2To(D16(), hn::Load(F32(), row + d), next)), F32(), row + d / 2);
    }
    return 1;
  }
  // The softmax has rounded them.
  template <int R>
  static HWY_INLINE void PackWeights(float* weights, int64_t count, float*) {
    const U32 du;
    if (count % 2 != 0) std::fill_n(weights + count * R, R, 0.0F);
    for (int64_t i = 0; i < count * R; i += std::max<int64_t>(2 * R, kLanes))
      for (int v = 0; v < kRowVectors<R>; ++v) {
        float* at = weights + i + v * kLanes;
        const auto first = hn::ShiftRight<16>(hn::BitCast(du, hn::Load(F32(), at)));
        const auto second = hn::And(hn::BitCast(du, hn::LoadU(F32(), at + R)), hn::Set(du, 0xFFFF0000));
        hn::Store(hn::BitCast(F32(), hn::Or(first, second)), F32(), at);
      }
  }
};

// Codes of int8 and int4.
template <typename T>
struct CodeDots : DotsBase<T, int16_t> {
  using typename DotsBase<T, int16_t>::Pointer;
  using typename DotsBase<T, int16_t>::Factor;
  using DotsBase<T, int16_t>::Cells;
  using Sum = hn::Vec<I32>;
  static constexpr bool kIntegers = true;
  // A lane's sum of 512 products with codes fits 31 bits: 4096 channels in 8 lanes, beyond which the plan takes no dot
  // products, or the keys of a tile.
  static constexpr float kLimit = 32767.0F;

  static HWY_INLINE Sum Zero() { return hn::Zero(I32()); }
  static HWY_INLINE Factor LoadKey(Pointer p) { return Load16(p); }
  static HWY_INLINE Factor LoadKeyN(Pointer p, size_t n) { return Load16N(p, n); }
  // Pairs are made within blocks of 128 bits, the cheapest way: OrderColumns undoes it.
  template <int kColumns, bool kPartial>
  static HWY_INLINE void LoadValues(Pointer p, Pointer q, size_t n, Factor (&to)[kColumns]) {
    HWY_UNROLL(16)
    for (int c = 0; c < kColumns; c += 2) {
      const auto load = [&](Pointer at)
                            HWY_ATTR { return kPartial ? LoadKeyN(at + c * kLanes, n) : LoadKey(at + c * kLanes); };
      const Factor a = load(p);
      const Factor b = load(q);
      to[c] = hn::InterleaveLower(I16(), a, b);
      to[c + 1] = hn::InterleaveUpper(I16(), a, b);
    }
  }
  static HWY_INLINE Sum MulAdd(Factor a, Factor b, Sum sum) {
    // In assembly, since g++ 12 copies integer sums to other registers and back, as many copies as products.
#if HWY_TARGET <= HWY_AVX3_DL
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
    return sum;
#elif HWY_TARGET <= HWY_AVX2
    const auto products = hn::WidenMulPairwiseAdd(I32(), a, b);
    __asm__("vpaddd %1, %0, %0" : "+v"(sum.raw) : "v"(products.raw));
    return sum;
#else
    Sum odd = hn::Zero(I32());  // stays zero on x86
    return hn::ReorderWidenMulAccumulate(I32(), a, b, sum, odd);
#endif
  }
  static HWY_INLINE Vec ToF32(Sum sum) { return hn::ConvertTo(F32(), sum); }
  // The sums of two vectors that LoadValues made, `a` with the even half blocks of the columns and `b` with the odd
  // ones, become those of the columns as they lie.
  static HWY_INLINE void OrderColumns(Vec& a, Vec& b) {
    if constexpr (kLanes == 4) return;
    const F32 df;
    const Vec lower = hn::ConcatLowerLower(df, b, a);
    const Vec upper = hn::ConcatUpperUpper(df, b, a);
    if constexpr (kLanes == 8) {
      a = lower;
      b = upper;
    } else {
      alignas(64) static constexpr int32_t kOrder[16] = {0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15};
      const auto order = hn::SetTableIndices(df, kOrder);
      a = hn::TableLookupLanes(lower, order);
      b = hn::TableLookupLanes(upper, order);
    }
  }

  static float PackQuery(float* row, int64_t count) {
    const F32 df;
    Vec most = hn::Zero(df);
    Vec poison = hn::Zero(df);  // NaN if any of them is not finite, which no code can say
    for (int64_t d = 0; d < count; d += kLanes) {
      const Vec q = hn::Load(df, row + d);
      most = hn::Max(most, hn::Abs(q));
      poison = hn::MulAdd(q, hn::Zero(df), poison);
    }
    const float largest = hn::ReduceMax(df, most);
    const Vec to_code = hn::Set(df, largest > 0 ? kLimit / largest : 0.0F);
    const auto code = [&](int64_t d) HWY_ATTR { return hn::NearestInt(hn::Mul(hn::Load(df, row + d), to_code)); };
    for (int64_t d = 0; d < count; d += 2 * kLanes) {
      const auto next = d + static_cast<int64_t>(kLanes) < count ? code(d + kLanes) : hn::Zero(I32());
      hn::Store(Cells(hn::OrderedDemote2To(I16(), code(d), next)), df, row + d / 2);
    }
    return largest / kLimit + hn::ReduceSum(df, poison);
  }
  template <int R>
  static HWY_INLINE void PackWeights(float* weights, int64_t count, float* factors) {
    const F32 df;
    const I32 di;
    constexpr int64_t kVectors = kRowVectors<R>;
    if (count % 2 != 0) std::fill_n(weights + count * R, R, 0.0F);
    for (int64_t v = 0; v < kVectors; ++v) {
      Vec most = hn::Zero(df);
      Vec poison = hn::Zero(df);
      for (int64_t i = v * kLanes; i < count * R; i += kVectors * kLanes) {
        const Vec weight = hn::Load(df, weights + i);
        most = hn::Max(most, weight);
        poison = hn::MulAdd(weight, hn::Zero(df), poison);
      }
      most = AcrossKeys<R>(most, MaxOp());
      poison = AcrossKeys<R>(poison, AddOp());
      const Vec limit = hn::Set(df, kLimit);
      const Vec to_code = hn::IfThenZeroElse(hn::Eq(most, hn::Zero(df)), hn::Div(limit, most));
      for (int64_t i = v * kLanes; i < count * R; i += std::max<int64_t>(2 * R, kLanes)) {
        const auto first = hn::NearestInt(hn::Mul(hn::Load(df, weights + i), to_code));
        const auto second = hn::NearestInt(hn::Mul(hn::LoadU(df, weights + i + R), to_code));
        const auto both = hn::Or(hn::And(first, hn::Set(di, 0xFFFF)), hn::ShiftLeft<16>(second));
        hn::Store(hn::BitCast(df, both), df, weights + i);
      }
      hn::Store(hn::Add(hn::Div(most, limit), poison), df, factors + v * kLanes);
    }
  }
};
template <>
struct Dots<int8_t> : CodeDots<int8_t> {};
template <>
struct Dots<I4> : CodeDots<I4> {};

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
