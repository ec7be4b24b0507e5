#include "host/twin.h"

#include <gtest/gtest.h>

namespace kvshare::host {
namespace {

TEST(MeaningOf, GivesEachChannelItsScale) {
  const TwinCache cache{"past", "present", "read", {0.5F, 2, 3, 10, 20, 30}, 2, 3};
  Tensor codes = Tensor::Integers(DType::kI8, {1, 2, 1, 3}, {1, 2, 3, -1, 0, 4});
  const auto meaning = MeaningOf(cache, codes);
  ASSERT_TRUE(meaning.ok()) << meaning.status().message();
  const std::vector<double> expected = {0.5, 4, 9, -10, 0, 120};
  for (int64_t i = 0; i < 6; ++i) EXPECT_EQ(meaning->At(i), expected[static_cast<size_t>(i)]) << i;
}

// The even channel in the low half of a byte, eight more than the code; a row of three channels ends with half a byte.
TEST(MeaningOf, ReadsTwoCodesOfInt4FromAByte) {
  const TwinCache cache{"past", "present", "read", {0.5F}, 1, 3};
  Tensor codes = Tensor::Zeros(DType::kI4, {1, 1, 2, 2});
  codes.data = {std::byte{0x9A}, std::byte{0x07}, std::byte{0x80}, std::byte{0x0F}};
  const auto meaning = MeaningOf(cache, codes);
  ASSERT_TRUE(meaning.ok()) << meaning.status().message();
  const std::vector<double> expected = {1, 0.5, -0.5, -4, 0, 3.5};
  for (int64_t i = 0; i < 6; ++i) EXPECT_EQ(meaning->At(i), expected[static_cast<size_t>(i)]) << i;
}

TEST(MeaningOf, RefusesAnotherShape) {
  const TwinCache cache{"past", "present", "read", {0.5F, 1}, 2, 3};
  EXPECT_EQ(MeaningOf(cache, Tensor::Zeros(DType::kI8, {1, 2, 1, 3})).status().message(),
            "'present' has shape [1, 2, 1, 3] and 2 scales; needs [B, 2, rows, 3] and 1 or 6");
}

}  // namespace
}  // namespace kvshare::host
