#include "ep/claims.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/graph/two_layers.h"

namespace kvshare::ep {
namespace {

using graph::GraphOf;
using graph::kTwoLayers;
using graph::TwoLayersWith;
using testing::ElementsAre;
using testing::IsEmpty;

Claims Of(std::string_view text, Alignment alignment = Alignment::kAuto) {
  return FindClaims(GraphOf(text), alignment);
}

TEST(Alignment, AutoReadsABorrowersTriangleFromTheLastKey) {
  const Claims claims = Of(kTwoLayers);
  EXPECT_TRUE(claims.plans.at("out1").lower_right);
  EXPECT_THAT(claims.repaired, ElementsAre("Attention 'out1'"));
}

TEST(Alignment, SpecReadsItFromTheFirstKey) {
  const Claims claims = Of(kTwoLayers, Alignment::kSpec);
  EXPECT_FALSE(claims.plans.at("out1").lower_right);
  EXPECT_THAT(claims.repaired, IsEmpty());
}

TEST(Alignment, LowerRightIsAskedForAndNoRepair) {
  const Claims claims = Of(kTwoLayers, Alignment::kLowerRight);
  EXPECT_TRUE(claims.plans.at("out1").lower_right);
  EXPECT_THAT(claims.repaired, IsEmpty());
}

TEST(Alignment, AutoLeavesALayerThatIsNotCausal) {
  EXPECT_FALSE(Of(TwoLayersWith("out1", "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=1}"))
                   .plans.at("out1")
                   .lower_right);
}

TEST(Alignment, AutoLeavesALayerWhoseKeysNoOtherMade) {
  EXPECT_FALSE(
      Of(TwoLayersWith("out1", "out1 = Attention(rotated, k0, k0) {q_num_heads=4, kv_num_heads=1, is_causal=1}"))
          .plans.at("out1")
          .lower_right);
}

TEST(Presents, AreHiddenWhereNobodyReadsThem) {
  const std::string text = TwoLayersWith("out1",
                                         "const empty f32[1,0,8] = 0\nout1, pk1, pv1 = "
                                         "com.microsoft.GroupQueryAttention(rotated, empty, empty, present_k, "
                                         "present_v, seqlens, total) {num_heads=4, kv_num_heads=1}");
  const Claims claims = Of(text);
  EXPECT_TRUE(claims.plans.at("out1").hides_presents);
  EXPECT_FALSE(claims.plans.at("out0").hides_presents);
}

TEST(Presents, AreMadeWhereOneOfThemIsRead) {
  const std::string text =
      TwoLayersWith("out1",
                    "const empty f32[1,0,8] = 0\nout1, pk1, pv1 = com.microsoft.GroupQueryAttention(rotated, empty, "
                    "empty, present_k, "
                    "present_v, seqlens, total) {num_heads=4, kv_num_heads=1}\nread = Shape(pv1)\noutput read i64[4]");
  EXPECT_FALSE(Of(text).plans.at("out1").hides_presents);
}

}  // namespace
}  // namespace kvshare::ep
