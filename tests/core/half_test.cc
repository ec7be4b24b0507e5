#include "core/half.h"

#include <gtest/gtest.h>

#include <bit>
#include <random>

namespace kvshare {
namespace {

#ifdef __aarch64__
using CompilersF16 = __fp16;  // g++ knows _Float16 there from 13 on
#else
using CompilersF16 = _Float16;
#endif

TEST(F16, EveryBitPatternConvertsLikeTheCompilers) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto want = static_cast<float>(std::bit_cast<CompilersF16>(static_cast<uint16_t>(bits)));
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
    const auto want = std::bit_cast<uint16_t>(static_cast<CompilersF16>(value));
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

TEST(F8E4M3, EveryNumberRoundsToItself) {
  for (uint32_t bits = 0; bits < 0x100; ++bits) {
    const float value = F32FromF8E4M3(static_cast<uint8_t>(bits));
    if (std::isnan(value)) {
      EXPECT_EQ(bits & 0x7F, 0x7FU);
    } else {
      EXPECT_EQ(F8E4M3FromF32(value), bits) << value;
    }
  }
  EXPECT_EQ(F32FromF8E4M3(0x7E), 448.0F);
  EXPECT_EQ(F32FromF8E4M3(0x01), 0x1p-9F);
}

TEST(F8E4M3, TiesGoToEvenAndTheLargestSaturates) {
  EXPECT_EQ(F8E4M3FromF32(1.0F + 0x1p-4F), F8E4M3FromF32(1.0F));
  EXPECT_EQ(F8E4M3FromF32(1.0F + 3 * 0x1p-4F), F8E4M3FromF32(1.25F));
  EXPECT_EQ(F8E4M3FromF32(0x1p-10F), 0);
  EXPECT_EQ(F8E4M3FromF32(-1e9F), 0xFE);
  EXPECT_EQ(F8E4M3FromF32(463.0F), 0x7E);
  EXPECT_EQ(F8E4M3FromF32(std::numeric_limits<float>::quiet_NaN()) & 0x7F, 0x7F);
}

TEST(Codes, OfIntegersRoundToEvenClampAndSharePairs) {
  int8_t bytes[4] = {};
  StoreElement(bytes, DType::kI8, 0, 2.5);
  StoreElement(bytes, DType::kI8, 1, 1000);
  StoreElement(bytes, DType::kI8, 2, -1000);
  StoreElement(bytes, DType::kI8, 3, std::numeric_limits<double>::quiet_NaN());
  EXPECT_EQ(bytes[0], 2);
  EXPECT_EQ(bytes[1], 127);
  EXPECT_EQ(bytes[2], -128);
  EXPECT_EQ(bytes[3], 0);
  uint8_t pair = 0;
  StoreElement(&pair, DType::kI4, 0, -8);
  StoreElement(&pair, DType::kI4, 1, 7);
  EXPECT_EQ(pair, 0xF0);
  EXPECT_EQ(LoadElement(&pair, DType::kI4, 0), -8);
  EXPECT_EQ(LoadElement(&pair, DType::kI4, 1), 7);
}

}  // namespace
}  // namespace kvshare
