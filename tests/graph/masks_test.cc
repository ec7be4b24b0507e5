#include "graph/masks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

TEST(ReadMask, AFloatMaskHoldsWindowCausalityAndPadding) {
  const auto mask = ReadMask(GraphOf(kTwoLayers), "bias");
  ASSERT_TRUE(mask.ok()) << mask.status().message();
  EXPECT_EQ(mask->window, 4);
  EXPECT_TRUE(mask->causal);
  EXPECT_TRUE(mask->padding);
  EXPECT_EQ(mask->rank, 4);
  EXPECT_EQ(mask->key_mask, "attention_mask");
  EXPECT_EQ(mask->query, "input_ids");
}

TEST(ReadMask, ABoolMaskHoldsOnlyWhatItSays) {
  const auto mask = ReadMask(GraphOf(TwoLayersWith("both", "both = And(near, kept)")), "both");
  ASSERT_TRUE(mask.ok()) << mask.status().message();
  EXPECT_EQ(mask->window, 4);
  EXPECT_FALSE(mask->causal);
  EXPECT_TRUE(mask->padding);
  EXPECT_EQ(mask->rank, 3);
}

TEST(ReadMask, ExpandedPaddingIsPadding) {
  const std::string text = TwoLayersWith("bias",
                                         "flag = Cast(attention_mask) {to=9}\nflags = Unsqueeze(flag, one)\n"
                                         "B = Shape(input_ids) {start=0, end=1}\nBST = Concat(B, S, T) {axis=0}\n"
                                         "bias = Expand(flags, BST)");
  const auto mask = ReadMask(GraphOf(text), "bias");
  ASSERT_TRUE(mask.ok()) << mask.status().message();
  EXPECT_EQ(mask->window, -1);
  EXPECT_FALSE(mask->causal);
  EXPECT_TRUE(mask->padding);
  EXPECT_EQ(mask->query, "input_ids");
}

TEST(ReadMask, AnExpandToAnotherShapeIsNotRead) {
  const std::string text = TwoLayersWith("bias",
                                         "flag = Cast(attention_mask) {to=9}\nflags = Unsqueeze(flag, one)\n"
                                         "BST = Concat(S, S, T) {axis=0}\nbias = Expand(flags, BST)");
  EXPECT_EQ(ReadMask(GraphOf(text), "bias").status().message(), "mask: Expand 'bias' does not expand to [B, S, T]");
}

TEST(ReadMask, AMaskThroughACastToHalfIsRead) {
  const std::string text = TwoLayersWith("bias", "half = Cast(bias3) {to=10}\nbias = Unsqueeze(half, one)");
  EXPECT_TRUE(ReadMask(GraphOf(text), "bias").ok());
}

TEST(ReadMask, AMaskFromOutsideHasNoKnownMeaning) {
  EXPECT_EQ(ReadMask(GraphOf(kTwoLayers), "attention_mask").status().message(),
            "mask: 'attention_mask' is given from outside; its meaning is not known");
}

TEST(ReadMask, PositionsOfTwoCountersAreNotCompared) {
  const std::string text = TwoLayersWith("kv", "count2 = CumSum(attention_mask, one)\nkv = Unsqueeze(count2, one)");
  EXPECT_EQ(ReadMask(GraphOf(text), "bias").status().message(),
            "mask: GreaterOrEqual 'causal' compares positions that two different nodes count");
}

TEST(MaskNodes, AreThoseThatFeedTheMaskButShapes) {
  const auto nodes = MaskNodes(GraphOf(kTwoLayers), "bias");
  EXPECT_EQ(nodes.size(), 14U);
}

}  // namespace
}  // namespace kvshare::graph
