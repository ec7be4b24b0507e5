// Per-target: vectors of f32 from and to memory of every element type, whole or the first n lanes. Codes of quantized
// types come and go without their scale.
#if defined(KVSHARE_ATTENTION_LOAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_LOAD_INL_H_
#undef KVSHARE_ATTENTION_LOAD_INL_H_
#else
#define KVSHARE_ATTENTION_LOAD_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <type_traits>

#include "core/half.h"
#include "kvshare/shapes.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes; fixed-size vectors (x86), so arrays of them may live in registers.
using F32 = hn::CappedTag<float, 16>;
using Vec = hn::Vec<F32>;
inline constexpr size_t kLanes = hn::MaxLanes(F32());

constexpr int64_t RoundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Element types that C++ has no name for.
struct F8E4M3 {
  uint8_t bits;
};
struct I4 {};

// Walks elements as a pointer does; int4 has two a byte, so only even distances have an address.
struct I4Pointer {
  const uint8_t* pairs;
  HWY_INLINE I4Pointer operator+(int64_t elements) const { return {pairs + elements / 2}; }
};

// What the kernels need to know of an element type T: its pointer, and the bytes of n elements.
template <typename T>
struct Element {
  using Pointer = const T*;
  static HWY_INLINE Pointer From(const void* p) { return static_cast<const T*>(p); }
  static HWY_INLINE const void* Address(Pointer p) { return p; }
  static constexpr HWY_INLINE int64_t Bytes(int64_t n) { return n * static_cast<int64_t>(sizeof(T)); }
};
template <>
struct Element<I4> {
  using Pointer = I4Pointer;
  static HWY_INLINE Pointer From(const void* p) { return {static_cast<const uint8_t*>(p)}; }
  static HWY_INLINE const void* Address(Pointer p) { return p.pairs; }
  static constexpr HWY_INLINE int64_t Bytes(int64_t n) { return n / 2; }
};

HWY_INLINE Vec Load(const float* p) { return hn::LoadU(F32(), p); }
HWY_INLINE Vec Load(const hwy::float16_t* p) {
  return hn::PromoteTo(F32(), hn::LoadU(hn::Rebind<hwy::float16_t, F32>(), p));
}
HWY_INLINE Vec Load(const hwy::bfloat16_t* p) {
  return hn::PromoteTo(F32(), hn::LoadU(hn::Rebind<hwy::bfloat16_t, F32>(), p));
}

using Codes = hn::Rebind<uint8_t, F32>;
using CodeVec = hn::Vec<Codes>;

HWY_INLINE Vec FromI8(hn::Vec<hn::Rebind<int8_t, F32>> codes) {
  return hn::ConvertTo(F32(), hn::PromoteTo(hn::RebindToSigned<F32>(), codes));
}
// int4 codes, each plus 8, of the pairs in the lower half of the lanes.
template <class D>
HWY_INLINE hn::Vec<D> SplitPairs(D d, hn::Vec<D> pairs) {
  return hn::InterleaveWholeLower(d, hn::And(pairs, hn::Set(d, 15)), hn::ShiftRight<4>(pairs));
}
HWY_INLINE Vec FromI4(CodeVec pairs) {
  const Codes d;
  return FromI8(hn::BitCast(hn::RebindToSigned<Codes>(), hn::Sub(SplitPairs(d, pairs), hn::Set(d, 8))));
}
// The bits of e4m3, shifted into the fields of f16, make value / 256, subnormals included. Only NaN is set apart.
HWY_INLINE Vec FromF8E4M3(CodeVec codes) {
  const F32 df;
  const hn::Rebind<uint16_t, F32> d16;
  const hn::RebindToUnsigned<F32> d32;
  const auto wide = hn::PromoteTo(d16, codes);
  const auto magnitude = hn::ShiftLeft<7>(hn::And(wide, hn::Set(d16, 0x7F)));
  const auto half = hn::Or(hn::ShiftLeft<8>(hn::And(wide, hn::Set(d16, 0x80))), magnitude);
  const Vec value = hn::PromoteTo(df, hn::BitCast(hn::Rebind<hwy::float16_t, F32>(), half));
  const auto nan = hn::Eq(hn::PromoteTo(d32, magnitude), hn::Set(d32, 0x7F << 7));
  return hn::IfThenElse(hn::RebindMask(df, nan), hn::NaN(df), hn::Mul(value, hn::Set(df, 256.0F)));
}

HWY_INLINE Vec Load(const int8_t* p) { return FromI8(hn::LoadU(hn::Rebind<int8_t, F32>(), p)); }
HWY_INLINE Vec Load(I4Pointer p) {
#if HWY_TARGET == HWY_AVX2
  // All eight codes in each lane, which shifts to its own: half the instructions of splitting and widening bytes.
  const hn::RebindToUnsigned<F32> d32;
  const hn::RebindToSigned<F32> di32;
  uint32_t pairs;
  hwy::CopyBytes<sizeof(pairs)>(p.pairs, &pairs);
  const auto codes = hn::And(hn::Shr(hn::Set(d32, pairs), hn::ShiftLeft<2>(hn::Iota(d32, 0))), hn::Set(d32, 15));
  return hn::ConvertTo(F32(), hn::Sub(hn::BitCast(di32, codes), hn::Set(di32, 8)));
#else
  return FromI4(hn::ResizeBitCast(Codes(), hn::LoadU(hn::Half<Codes>(), p.pairs)));
#endif
}
HWY_INLINE Vec Load(const F8E4M3* p) { return FromF8E4M3(hn::LoadU(Codes(), &p->bits)); }

// Whole vectors are read and written without a mask: AVX2 has none for 16 bits, and AMD's masked stores are slow.
HWY_INLINE Vec LoadN(const float* p, size_t n) { return n == kLanes ? Load(p) : hn::LoadN(F32(), p, n); }
HWY_INLINE Vec LoadN(const hwy::float16_t* p, size_t n) {
  return n == kLanes ? Load(p) : hn::PromoteTo(F32(), hn::LoadN(hn::Rebind<hwy::float16_t, F32>(), p, n));
}
HWY_INLINE Vec LoadN(const hwy::bfloat16_t* p, size_t n) {
  return n == kLanes ? Load(p) : hn::PromoteTo(F32(), hn::LoadN(hn::Rebind<hwy::bfloat16_t, F32>(), p, n));
}

HWY_INLINE Vec LoadN(const int8_t* p, size_t n) { return FromI8(hn::LoadN(hn::Rebind<int8_t, F32>(), p, n)); }
// The last byte of an odd number of channels holds one code. The lane of its other half is cleared.
HWY_INLINE Vec LoadN(I4Pointer p, size_t n) {
  return hn::IfThenElseZero(hn::FirstN(F32(), n), FromI4(hn::LoadN(Codes(), p.pairs, (n + 1) / 2)));
}
HWY_INLINE Vec LoadN(const F8E4M3* p, size_t n) { return FromF8E4M3(hn::LoadN(Codes(), &p->bits, n)); }

template <class D>
HWY_INLINE void StoreWholeOrN(hn::Vec<D> v, D d, hn::TFromD<D>* p, size_t n) {
  if (n == kLanes)
    hn::StoreU(v, d, p);
  else
    hn::StoreN(v, d, p, n);
}
HWY_INLINE void StoreN(Vec v, float* p, size_t n) { StoreWholeOrN(v, F32(), p, n); }
HWY_INLINE void StoreN(Vec v, hwy::float16_t* p, size_t n) {
  const hn::Rebind<hwy::float16_t, F32> d;
  StoreWholeOrN(hn::DemoteTo(d, v), d, p, n);
}
HWY_INLINE void StoreN(Vec v, hwy::bfloat16_t* p, size_t n) {
  const hn::Rebind<hwy::bfloat16_t, F32> d;
  StoreWholeOrN(hn::DemoteTo(d, v), d, p, n);
}

// visit(pointer) with the typed address of element `index` of an f32, f16 or bf16 array.
template <class Visit>
HWY_INLINE decltype(auto) WithAddress(const void* data, DType type, int64_t index, const Visit& visit) {
  switch (type) {
    case DType::kF16: return visit(static_cast<const hwy::float16_t*>(data) + index);
    case DType::kBF16: return visit(static_cast<const hwy::bfloat16_t*>(data) + index);
    default: return visit(static_cast<const float*>(data) + index);
  }
}
template <class Visit>
HWY_INLINE void WithAddress(void* data, DType type, int64_t index, const Visit& visit) {
  WithAddress(static_cast<const void*>(data), type, index, [&](auto* p) HWY_ATTR {
    visit(const_cast<std::remove_const_t<std::remove_pointer_t<decltype(p)>>*>(p));
  });
}

// Elements [index, index + n) of an f32, f16 or bf16 array, n <= kLanes.
HWY_INLINE Vec LoadAny(const void* data, DType type, int64_t index, size_t n) {
  return WithAddress(data, type, index, [&](auto* p) HWY_ATTR { return LoadN(p, n); });
}

// Rounds once and stores elements [index, index + n).
HWY_INLINE void StoreAny(Vec v, void* data, DType type, int64_t index, size_t n) {
  WithAddress(data, type, index, [&](auto* p) HWY_ATTR { StoreN(v, p, n); });
}

// visit(d, lanes) for every vector of `count` elements from element d on; the last may have fewer than kLanes lanes.
template <class Visit>
HWY_INLINE void ForEachVector(int64_t count, const Visit& visit) {
  constexpr int64_t kVector = kLanes;
  int64_t d = 0;
  for (; d + kVector <= count; d += kVector) visit(d, kLanes);
  if (d < count) visit(d, static_cast<size_t>(count - d));
}

// A row of `count` elements from `index` on as f32; zeros up to a whole vector.
inline void LoadElements(const void* data, DType type, int64_t index, int64_t count, float* row) {
  WithAddress(data, type, index, [&](auto* p) HWY_ATTR {
    ForEachVector(count, [&](int64_t d, size_t n) HWY_ATTR { hn::StoreU(LoadN(p + d, n), F32(), row + d); });
  });
}

// Stores a row of numbers as the codes of `to`'s token at `offset`: nearest, ties to even, clamped. `row` is spoilt.
inline void StoreCodes(float* row, const MutableHeadsView& to, int64_t head, int64_t offset) {
  const F32 df;
  const int64_t D = to.head_size;
  const float limit = to.type == DType::kI8 ? 128.0F : 8.0F;
  for (int64_t d = 0; d < D; d += kLanes) {
    const size_t n = std::min<int64_t>(kLanes, D - d);
    const Vec scale = to.quant.per_channel ? hn::LoadNOr(hn::Set(df, 1.0F), df, to.quant.scale + head * D + d, n)
                                           : hn::Set(df, to.quant.scale[0]);
    Vec code = hn::Div(hn::LoadU(df, row + d), scale);
    if (to.type != DType::kF8E4M3) {
      code = hn::IfThenZeroElse(hn::IsNaN(code), code);
      code = hn::Clamp(hn::Round(code), hn::Set(df, -limit), hn::Set(df, limit - 1));
    }
    hn::StoreU(code, df, row + d);
  }
  void* const codes = At(to.data, to.type, offset);
  if (to.type == DType::kI8) {
    for (int64_t d = 0; d < D; ++d) static_cast<int8_t*>(codes)[d] = static_cast<int8_t>(row[d]);
  } else if (to.type == DType::kF8E4M3) {
    for (int64_t d = 0; d < D; ++d) static_cast<uint8_t*>(codes)[d] = F8E4M3FromF32(row[d]);
  } else {
    for (int64_t d = 0; d < D; d += 2) {
      const int high = d + 1 < D ? static_cast<int>(row[d + 1]) + 8 : 0;
      static_cast<uint8_t*>(codes)[d / 2] = static_cast<uint8_t>(static_cast<int>(row[d]) + 8 + (high << 4));
    }
  }
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
