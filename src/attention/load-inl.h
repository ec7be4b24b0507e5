// Per-target: vectors of f32 from and to f32, f16 and bf16 memory, whole or the first n lanes.
#if defined(KVSHARE_ATTENTION_LOAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_LOAD_INL_H_
#undef KVSHARE_ATTENTION_LOAD_INL_H_
#else
#define KVSHARE_ATTENTION_LOAD_INL_H_
#endif

#include <hwy/highway.h>

#include "kvshare/shapes.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes; fixed-size vectors (x86), so arrays of them may live in registers.
using F32 = hn::CappedTag<float, 16>;
using Vec = hn::Vec<F32>;
inline constexpr size_t kLanes = hn::MaxLanes(F32());

// Fetches the line into L2, not L1: a tile ahead is more than L1 holds (Highway's Prefetch asks for L1).
HWY_INLINE void PrefetchL2(const void* p) { __builtin_prefetch(p, 0, 2); }

HWY_INLINE Vec Load(const float* p) { return hn::LoadU(F32(), p); }
HWY_INLINE Vec Load(const hwy::float16_t* p) {
  return hn::PromoteTo(F32(), hn::LoadU(hn::Rebind<hwy::float16_t, F32>(), p));
}
HWY_INLINE Vec Load(const hwy::bfloat16_t* p) {
  return hn::PromoteTo(F32(), hn::LoadU(hn::Rebind<hwy::bfloat16_t, F32>(), p));
}

HWY_INLINE Vec LoadN(const float* p, size_t n) { return hn::LoadN(F32(), p, n); }
HWY_INLINE Vec LoadN(const hwy::float16_t* p, size_t n) {
  return hn::PromoteTo(F32(), hn::LoadN(hn::Rebind<hwy::float16_t, F32>(), p, n));
}
HWY_INLINE Vec LoadN(const hwy::bfloat16_t* p, size_t n) {
  return hn::PromoteTo(F32(), hn::LoadN(hn::Rebind<hwy::bfloat16_t, F32>(), p, n));
}

HWY_INLINE void StoreN(Vec v, float* p, size_t n) { hn::StoreN(v, F32(), p, n); }
HWY_INLINE void StoreN(Vec v, hwy::float16_t* p, size_t n) {
  const hn::Rebind<hwy::float16_t, F32> d;
  hn::StoreN(hn::DemoteTo(d, v), d, p, n);
}
HWY_INLINE void StoreN(Vec v, hwy::bfloat16_t* p, size_t n) {
  const hn::Rebind<hwy::bfloat16_t, F32> d;
  hn::StoreN(hn::DemoteTo(d, v), d, p, n);
}

// Elements [index, index + n) of an f32, f16 or bf16 array, n <= kLanes.
HWY_INLINE Vec LoadAny(const void* data, DType type, int64_t index, size_t n) {
  switch (type) {
    case DType::kF16: return LoadN(static_cast<const hwy::float16_t*>(data) + index, n);
    case DType::kBF16: return LoadN(static_cast<const hwy::bfloat16_t*>(data) + index, n);
    default: return LoadN(static_cast<const float*>(data) + index, n);
  }
}

// Rounds once and stores elements [index, index + n).
HWY_INLINE void StoreAny(Vec v, void* data, DType type, int64_t index, size_t n) {
  switch (type) {
    case DType::kF16: return StoreN(v, static_cast<hwy::float16_t*>(data) + index, n);
    case DType::kBF16: return StoreN(v, static_cast<hwy::bfloat16_t*>(data) + index, n);
    default: return StoreN(v, static_cast<float*>(data) + index, n);
  }
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
