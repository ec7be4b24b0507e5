// GroupQueryAttention with an attention_bias: which one its own attributes can say, and which one stays.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/graph/rewrite_text.h"
#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

// Layer 0 of kTwoLayers with `bias` as its attention_bias, outputs and attributes as given; `output`'s line is `line`.
std::string Biased(std::string_view output, std::string_view line, const std::string& outputs = "present_k, present_v",
                   const std::string& attributes = "", const std::string& bias = "bias") {
  const std::string own = "out0, " + outputs +
                          " = com.microsoft.GroupQueryAttention(q0, k0, k0, past_k, past_v, seqlens, total, cos_table, "
                          "sin_table, _, " +
                          bias + ") {num_heads=4, kv_num_heads=1, scale=1.0, do_rotary=1" + attributes + "}";
  return TwoLayersWith("out0", own, TwoLayersWith(output, line));
}

std::string Biased() { return Biased("logits", "logits = Identity(out1)"); }

TEST(ReadBias, TurnsItIntoTheWindow) {
  const std::string text = TextAfter(Biased(), To(Target::kKvshare));
  EXPECT_THAT(text, testing::HasSubstr("past_v, seqlens, total, cos_table, sin_table) {"));
  EXPECT_THAT(text, testing::HasSubstr("local_window_size=4"));
  EXPECT_THAT(text, testing::Not(testing::HasSubstr("bias")));
}

TEST(ReadBias, TakesTheNarrowerOfTwoWindows) {
  const std::string text = TextAfter(
      Biased("logits", "logits = Identity(out1)", "present_k, present_v", ", local_window_size=3"), To(Target::kOrt));
  EXPECT_THAT(text, testing::HasSubstr("local_window_size=3"));
}

TEST(ReadBias, LeavesOwnLayersThatAreKept) {
  RewriteOptions options = To(Target::kKvshare);
  options.keep_own = true;
  EXPECT_THAT(TextAfter(Biased(), options), testing::HasSubstr("sin_table, _, bias)"));
}

struct KeptBias {
  const char* name;
  std::string text;
  const char* reason;
};

class KeepsBias : public testing::TestWithParam<KeptBias> {};

TEST_P(KeepsBias, AndSaysWhy) {
  EXPECT_EQ(RewriteText(GetParam().text, To(Target::kKvshare)).CodedDeclineOf("read-bias"), GetParam().reason);
}

INSTANTIATE_TEST_SUITE_P(
    Layers, KeepsBias,
    testing::Values(
        KeptBias{"Columns", Biased("bias", "const bias f32[1,1,1,4] = 0 0 0 0"),
                 "mask-unknown: its attention_bias compares columns; the node counts the tokens that are kept"},
        KeptBias{"NoPadding", Biased("both", "both = And(visible, causal)"),
                 "mask-keeps-padding: its attention_bias does not hide the padding"},
        KeptBias{"ThreeAxes", Biased("logits", "logits = Identity(out1)", "present_k, present_v", "", "bias3"),
                 "mask-unknown: its attention_bias has rank 3; needs 4"},
        KeptBias{"NotCausal", Biased("logits", "logits = Identity(out1)", "present_k, present_v", ", causal=0"),
                 "not-causal: has causal 0 and an attention_bias"},
        KeptBias{"Scores", Biased("logits", "logits = Identity(out1)", "present_k, present_v, scores", ", qk_output=1"),
                 "output-is-read: has output_qk, which shows its attention_bias"},
        KeptBias{"OtherLengths", Biased("ones", "ones = ReduceSum(position_ids, one) {keepdims=0}"),
                 "lengths-differ: its mask is made from 'attention_mask', the lengths of source layer 0 from "
                 "'position_ids'"},
        KeptBias{"MoreThanAWindow", Biased("visible", "visible = Or(causal, near)"),
                 "mask-unknown: mask: Or 'visible' lets queries see more than causality and a window do; it is needed "
                 "whole"}),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace kvshare::graph
