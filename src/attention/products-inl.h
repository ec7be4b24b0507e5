// Per-target: how the tile kernels multiply. Their loops are the same for both ways, and see 32-bit cells only, kept in
// memory as floats, whatever a cell holds:
//
// Fma<T>    a cell is one element, converted to f32; products are added in f32.
// Dots<T>   bf16 only. A cell is two elements, adjacent channels of K or adjacent keys of V, and one instruction
//           multiplies and adds both, in f32. The other side, queries and weights, is rounded to bf16: queries exactly
//           as callers' bf16 queries are.
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
  // Weights [count][R] in f32 become cells in place, those of keys j and j + 1 at j where a cell holds two.
  template <int R>
  static HWY_INLINE void PackWeights(float*, int64_t) {}
};

// The base of the two kinds of dot products.
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
  static HWY_INLINE void PackWeights(float* weights, int64_t count) {
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

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
