#include "core/half.h"

#include <gtest/gtest.h>

#include <bit>
#include <random>

namespace kvshare {
namespace {

TEST(F16, EveryBitPatternConvertsLikeTheCompilers) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto want = static_cast<float>(std::bit_cast<_Float16>(static_cast<uint16_t>(bits)));
    const float got = F32FromF16(static_cast<uint16_t>(bits));
    if (std::isnan(want))
      EXPECT_TRUE(std::isnan(got)) << bits;
    else
      EXPECT_EQ(std::bit_cast<uint32_t>(want), std::bit_cast<uint32_t>(got)) << bits;
  }
}

TEST(F16, RoundsLikeTheCompilersFromAnyFloat) {
  std::mt19937 random(1);
  for (int i = 0; i < 2000000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    const auto want = std::bit_cast<uint16_t>(static_cast<_Float16>(value));
    if (std::isnan(value))
      EXPECT_TRUE(std::isnan(F32FromF16(F16FromF32(value))));
    else
      ASSERT_EQ(F16FromF32(value), want) << value;
  }
}

TEST(F16, TiesGoToEven) {
  EXPECT_EQ(F16FromF32(1.0F + 0x1p-11F), 0x3C00);
  EXPECT_EQ(F16FromF32(1.0F + 3 * 0x1p-11F), 0x3C02);
  EXPECT_EQ(F16FromF32(0x1p-25F), 0);  // half of the least subnormal
  EXPECT_EQ(F16FromF32(65519.996F), 0x7BFF);
  EXPECT_EQ(F16FromF32(65520.0F), 0x7C00);  // infinity
}

TEST(BF16, IsTheUpperHalfRoundedToEven) {
  EXPECT_EQ(BF16FromF32(1.0F), 0x3F80);
  EXPECT_EQ(BF16FromF32(1.0F + 0x1p-8F), 0x3F80);
  EXPECT_EQ(BF16FromF32(1.0F + 3 * 0x1p-8F), 0x3F82);
  EXPECT_TRUE(std::isnan(F32FromBF16(BF16FromF32(std::numeric_limits<float>::quiet_NaN()))));
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = F32FromBF16(static_cast<uint16_t>(bits));
    if (!std::isnan(value)) {
      EXPECT_EQ(BF16FromF32(value), bits);
    }
  }
}

}  // namespace
}  // namespace kvshare
