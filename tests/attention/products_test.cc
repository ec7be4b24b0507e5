// Products of bf16 as each target's code makes them, below the kernels.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/attention/products_test.cc"
#include <hwy/foreach_target.h>
// The order matters: foreach_target.h first.
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>

#include "attention/products-inl.h"
#include "attention/tuning.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

// The lane furthest from 2 of the sums that begin at 0 and get a pair of products 1 * 1.
float SumOfAPairOfOnes() {
  using Products = Dots<hwy::bfloat16_t>;
  const auto ones = hn::BitCast(Products::D16(), hn::Set(Products::U16(), 0x3F80));
  HWY_ALIGN float sums[HWY_MAX_BYTES / sizeof(float)];
  hn::Store(Products::ToF32(Products::MulAdd(ones, ones, Products::Zero())), F32(), sums);
  const auto farther = [](float a, float b) { return std::abs(a - 2) < std::abs(b - 2); };
  return *std::max_element(sums, sums + hn::Lanes(F32()), farther);
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "tests/support/every_target.h"

namespace kvshare {
namespace {

using testing::EveryTarget;

HWY_EXPORT(SumOfAPairOfOnes);
KVSHARE_ON_EVERY_TARGET();

// Whether one sum takes both products, or a second one takes every other, is for the target to say. On NEON it is
// compiled after NEON_BF16, whose answer Highway's HWY_NATIVE_DOT_BF16 still has there.
TEST_P(EveryTarget, APairOfProductsOfBF16IsAddedWhole) { EXPECT_EQ(HWY_DYNAMIC_DISPATCH(SumOfAPairOfOnes)(), 2.0F); }

// Those of Intel's CPUs take as long as four FMA.
TEST(Tuning, OfX86OnlyAmdMultipliesBF16FasterThanF32) {
#if HWY_ARCH_X86
  EXPECT_EQ(HasFastBF16Dots(), __builtin_cpu_is("amd") != 0);
#else
  EXPECT_TRUE(HasFastBF16Dots());
#endif
}

}  // namespace
}  // namespace kvshare
#endif
