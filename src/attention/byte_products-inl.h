// Per-target: products of bytes, four adjacent ones at a time, added in 32 bits: x86's vpdpbusd, of a signed and an
// unsigned side, and Arm's sdot, of two signed ones. In assembly, since g++ 12 copies integer sums to other registers
// and back.
#if defined(KVSHARE_ATTENTION_BYTE_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_BYTE_PRODUCTS_INL_H_
#undef KVSHARE_ATTENTION_BYTE_PRODUCTS_INL_H_
#else
#define KVSHARE_ATTENTION_BYTE_PRODUCTS_INL_H_
#endif

#include "attention/load-inl.h"
#include "attention/products-inl.h"
#include "attention/tuning-inl.h"

#if KVSHARE_BYTE_DOTS
HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

using Sums = hn::Vec<I32>;
using U8 = hn::Repartition<uint8_t, F32>;
using I8 = hn::RebindToSigned<U8>;

// Whether both sides are signed. Where not, what meets queries' digits is keys' codes with 128 added, and weights'
// digits, which meet codes of V, are from 0 to 255.
inline constexpr bool kSignedProducts = kIsNeon;

// Stands before functions that are not inline and have the products inside.
#undef KVSHARE_BYTE_DOTS_ATTR
#if HWY_TARGET_IS_NEON && HWY_TARGET != HWY_NEON_BF16
#define KVSHARE_BYTE_DOTS_ATTR __attribute__((target("arch=armv8.2-a+dotprod")))
#else
#define KVSHARE_BYTE_DOTS_ATTR
#endif

// Vectors of keys or of V that share the sums of a pass.
inline constexpr int kScoreQuadVectors = kIsNeon ? 1 : 2;

// sum += four bytes of `a` times four signed bytes of `b`, a lane.
HWY_INLINE void AddProducts(hn::Vec<I8> a, hn::Vec<I8> b, Sums& sum) {
#if HWY_ARCH_X86
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
#else
  __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum.raw) : "w"(a.raw), "w"(b.raw));
#endif
}

#if HWY_TARGET_IS_NEON
// The same with lane kLane of `b` in place of each.
template <int kLane>
HWY_INLINE void AddProductsOfLane(hn::Vec<I8> a, hn::Vec<I8> b, Sums& sum) {
  __asm__("sdot %0.4s, %1.16b, %2.4b[%3]" : "+w"(sum.raw) : "w"(a.raw), "w"(b.raw), "i"(kLane));
}
#endif

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KVSHARE_BYTE_DOTS
#endif
