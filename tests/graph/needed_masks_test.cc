// Masks that join conditions by Or, as image blocks do: they stay, and their layers run in kvshare's Attention.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/graph/rewrite_text.h"
#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

// kTwoLayers whose mask shows blocks of tokens beside what is near, with the line of `out1`.
std::string TwoLayersOf(std::string_view out1) {
  return TwoLayersWith("out1", out1, TwoLayersWith("visible", "visible = Or(causal, near)"));
}

constexpr std::string_view kBorrower =
    "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=1, scale=1.0, is_causal=0}";

TEST(NeededMask, StaysAndTheBorrowedKeyIsReadWhereItLies) {
  const std::string text = TextAfter(TwoLayersOf(kBorrower), To(Target::kKvshareAttention));
  EXPECT_THAT(text, testing::HasSubstr("out1 = kvshare.Attention(rotated, present_k, present_v, bias)"));
  EXPECT_THAT(text, testing::HasSubstr("visible = Or(causal, near)"));
  EXPECT_THAT(text, testing::Not(testing::HasSubstr("Transpose")));
}

TEST(NeededMask, IsLeftToTheTargetThatKeepsMasks) {
  const Rewritten result = RewriteText(TwoLayersOf(kBorrower), To(Target::kKvshare));
  EXPECT_EQ(
      result.CodedDeclineOf("shared-attention"),
      "mask-unknown: mask: Or 'visible' lets queries see more than causality and a window do; it is needed whole");
  EXPECT_EQ(result.before, result.after);
}

class BesideANeededMask : public testing::TestWithParam<NearMiss> {};

TEST_P(BesideANeededMask, LeavesTheLayerAloneAndSaysWhy) {
  const Rewritten result = RewriteText(TwoLayersOf(GetParam().line), To(Target::kKvshareAttention));
  EXPECT_EQ(result.DeclineOf("shared-attention"), GetParam().reason);
  EXPECT_EQ(result.before, result.after);
}

INSTANTIATE_TEST_SUITE_P(
    Layers, BesideANeededMask,
    testing::Values(NearMiss{"Triangle", "out1",
                             "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=1, is_causal=1}",
                             "is_causal without a past counts from the first key"},
                    NearMiss{
                        "Window", "out1",
                        "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=1, left_window_size=3}",
                        "has left_window_size beside a mask that is needed whole"},
                    NearMiss{"Heads", "out1", "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=2}",
                             "source layer 0 has 1 key-value heads, shared layer has 2"},
                    NearMiss{"PastOfItsOwn", "out1",
                             "out1 = Attention(rotated, k1, v1, bias, past_k, past_v) {q_num_heads=4, kv_num_heads=1}",
                             "has a past of its own beside the borrowed key"}),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace kvshare::graph
