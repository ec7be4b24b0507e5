// Attention that borrows: what it turns into, and graphs that nearly are what the rule knows. Each is left alone, byte
// for byte, and says exactly why.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/graph/rewrite_text.h"
#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

class SharedAttention : public testing::TestWithParam<NearMiss> {};

TEST_P(SharedAttention, LeavesANearMissAloneAndSaysWhy) {
  const NearMiss& miss = GetParam();
  for (const Target target : {Target::kKvshare, Target::kOrt}) {
    const Rewritten result = RewriteText(TwoLayersWith(miss.output, miss.line), To(target));
    EXPECT_EQ(result.DeclineOf("shared-attention"), miss.reason);
    EXPECT_EQ(result.before, result.after);
    EXPECT_FALSE(result.report.changed);
    EXPECT_THAT(result.report.notes, testing::ElementsAre(testing::HasSubstr("nothing changed: 1 of 2")));
  }
}

INSTANTIATE_TEST_SUITE_P(
    NearMisses, SharedAttention,
    testing::Values(
        NearMiss{
            "WindowOperator", "near", "near = Equal(distance, window)",
            "mask: Equal 'near' is not one of And, comparisons of positions, Expand and padding as exporters write "
            "them"},
        NearMiss{"CausalOperator", "causal", "causal = Greater(q, kv)",
                 "mask: Greater 'causal' lets a query see up to -1 keys after its own"},
        NearMiss{"SwappedCausal", "causal", "causal = GreaterOrEqual(kv, q)", "mask: And 'visible' joins two windows"},
        NearMiss{"ComputedWindow", "near", "near = Less(distance, ones)",
                 "mask: Less 'near' does not compare positions of queries [B,S,1] with positions of keys [B,1,T]"},
        NearMiss{"SliceFromTheFront", "new", "new = Slice(count, S, T, one)",
                 "mask: Slice 'new' does not take the last S columns of the positions"},
        NearMiss{"SliceOfAnotherLength", "begin", "begin = Sub(T, T)",
                 "mask: Slice 'new' does not take the last S columns of the positions"},
        NearMiss{"QueriesOfAnotherInput", "S", "S = Shape(past_v) {start=1, end=2}",
                 "its mask takes the number of queries from 'past_v', whose extent 1 is fixed to 1; its query is not "
                 "known to have as many"},
        NearMiss{"SliceFromAnotherExtent", "begin", "PT = Shape(position_ids) {start=1, end=2}\nbegin = Sub(PT, S)",
                 "mask: Slice 'new' does not take the last S columns of the positions"},
        NearMiss{"BiasOnWhatItKeeps", "bias3", "const one32 f32[] = 1\nbias3 = Where(both, one32, hidden)",
                 "mask: Where 'bias3' adds 1 to what it keeps and -3.3999999521443642e+38 to the rest; needs 0 and at "
                 "most -65504"},
        NearMiss{"ExclusiveCount", "count", "count = CumSum(attention_mask, one) {exclusive=1}",
                 "mask: CumSum 'count' is exclusive or reversed"},
        NearMiss{"CountOfAnotherInput", "wide", "wide = Unsqueeze(position_ids, one)",
                 "mask: And 'both' joins conditions on 'position_ids' and on 'attention_mask'; needs one mask"},
        NearMiss{"LengthsOfAnotherInput", "ones", "ones = ReduceSum(position_ids, one) {keepdims=0}",
                 "its mask is made from 'attention_mask', the lengths of source layer 0 from 'position_ids'"},
        NearMiss{"TotalOfAnotherExtent", "total64", "total64 = Gather(extents, nought)\nconst nought i64[1] = 0",
                 "its mask is made from 'attention_mask', the lengths of source layer 0 from extent 0 of "
                 "'attention_mask'"},
        NearMiss{"MildMask", "hidden", "const hidden f32[] = -100",
                 "mask: Where 'bias3' adds 0 to what it keeps and -100 to the rest; needs 0 and at most -65504"},
        NearMiss{
            "InvertedMask", "bias3", "bias3 = Where(both, hidden, zero)",
            "mask: Where 'bias3' adds -3.3999999521443642e+38 to what it keeps and 0 to the rest; needs 0 and at most "
            "-65504"},
        NearMiss{"NoPadding", "both", "both = And(causal, near)", "its mask does not hide the padding"},
        NearMiss{"NoMask", "out1", "out1 = Attention(rotated, k1, v1) {q_num_heads=4, kv_num_heads=1, is_causal=1}",
                 "has no mask; needs one that hides the padding"},
        NearMiss{"ForeignPerm", "kt", "kt = Transpose(present_k) {perm=[0,2,3,1]}",
                 "Transpose 'kt' has perm [0,2,3,1]; needs [0,2,1,3]"},
        NearMiss{"ForeignShape", "v1", "v1 = Reshape(vt, one)", "Reshape 'v1' has shape [1]; needs [0,0,-1]"},
        NearMiss{"Crosswise", "kt", "kt = Transpose(present_v) {perm=[0,2,1,3]}",
                 "key and value of layer 0 are borrowed crosswise"},
        NearMiss{"ValueFromElsewhere", "v1", "v1 = Identity(k0)", "value 'k0' is not a layer's present"},
        NearMiss{"ZeroScale", "out1",
                 "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=1, scale=0.0, is_causal=1}",
                 "has scale 0, which GroupQueryAttention takes for 1/sqrt(head size)"},
        NearMiss{"MisspeltAttribute", "out1",
                 "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=1, sclae=1.0, is_causal=1}",
                 "has attribute 'sclae', which Attention does not know (scale?)"},
        NearMiss{"OtherHeads", "out1",
                 "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=2, scale=1.0, is_causal=1}",
                 "source layer 0 has 1 key-value heads, shared layer has 2"},
        NearMiss{"OwnPast", "out1",
                 "out1 = Attention(rotated, k1, v1, bias, past_k, past_v) {q_num_heads=4, kv_num_heads=1, is_causal=1}",
                 "has a past of its own beside the borrowed key"},
        NearMiss{"WindowAttribute", "out1",
                 "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=1, left_window_size=3}",
                 "has left_window_size, which counts columns; its mask counts the ones in 'attention_mask'"},
        NearMiss{"WindowAttributeBelowMinusOne", "out1",
                 "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=1, right_window_size=-2}",
                 "has right_window_size -2; needs -1 or more"},
        NearMiss{"NoKeyAfterTheFirst", "out1",
                 "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=1, right_window_size=0}",
                 "has right_window_size without a past, which counts from the first key; needs a past"},
        NearMiss{"PresentIsRead", "out1",
                 "out1, own_k = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=1, is_causal=1}\n"
                 "spy = Identity(own_k)\noutput spied f32[B,1,T,8]\nspied = Identity(spy)",
                 "its output 1 'own_k' is read"},
        NearMiss{"UnevenHeads", "out1",
                 "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=3, is_causal=1}",
                 "has 4 query heads for 3 key-value heads"},
        NearMiss{"HalfPrecisionSoftmax", "out1",
                 "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=1, softmax_precision=10, "
                 "is_causal=1}",
                 "has softmax_precision 10; needs 1 (float)"},
        NearMiss{"QueriesOfAForeignInput", "S", "input other i64[B,S]\nS = Shape(other) {start=1, end=2}",
                 "its mask takes the number of queries from 'other', which the query does not depend on"},
        NearMiss{"QueriesOfAValueBetween", "S", "S = Shape(k0) {start=1, end=2}",
                 "its mask takes the number of queries from 'k0', which is not known to have as many tokens as its "
                 "query"},
        NearMiss{"ComputedLengths", "seqlens", "seqlens = Neg(last)",
                 "the seqlens_k of source layer 0 is not known to count a mask"},
        NearMiss{"LengthsCountedByAForeignOperator", "ones",
                 "ones = com.microsoft.ReduceSum(attention_mask, one) {keepdims=0}",
                 "the seqlens_k of source layer 0 is not known to count a mask"},
        NearMiss{"LastTokenByAForeignOperator", "last", "last = com.microsoft.Sub(ones, one)",
                 "the seqlens_k of source layer 0 is not known to count a mask"},
        NearMiss{"LengthsThatWrapAt128", "last", "short = Cast(ones) {to=3}\nlast = Sub(short, one)",
                 "the seqlens_k of source layer 0 is not known to count a mask"},
        NearMiss{"TotalByAForeignOperator", "total64", "total64 = com.microsoft.Gather(extents, one)",
                 "the total_sequence_length of source layer 0 is not known to count a mask"},
        NearMiss{"ExtentsByAForeignOperator", "extents", "extents = com.microsoft.Shape(attention_mask)",
                 "the total_sequence_length of source layer 0 is not known to count a mask"},
        NearMiss{"SourceSeesTheFuture", "out0",
                 "out0, present_k, present_v = com.microsoft.GroupQueryAttention(q0, k0, k0, past_k, past_v, seqlens, "
                 "total, cos_table, sin_table) {num_heads=4, kv_num_heads=1, local_window_size=4, causal=0}",
                 "source layer 0 is not causal"},
        NearMiss{"QuantizedSource", "out0",
                 "out0, present_k, present_v = com.microsoft.GroupQueryAttention(q0, k0, k0, past_k, past_v, seqlens, "
                 "total, cos_table, sin_table, _, _, _, zero, zero) {num_heads=4, kv_num_heads=1, local_window_size=4}",
                 "source layer 0 has a quantized cache"},
        NearMiss{
            "WindowedSource", "out0",
            "out0, present_k, present_v = com.microsoft.GroupQueryAttention(q0, k0, k0, past_k, past_v, seqlens, "
            "total, cos_table, sin_table) {num_heads=4, kv_num_heads=1, local_window_size=4, sliding_window_cache=1}",
            "source layer 0 keeps only a window of its cache"}),
    [](const auto& test) { return std::string(test.param.name); });

// The source's cache is whole, whatever the source itself sees of it.
TEST(SharedAttention, KeepsAWindowOfItsOwn) {
  for (const Target target : {Target::kKvshare, Target::kKvshareAttention, Target::kOrt})
    EXPECT_THAT(TextAfter(TwoLayersWith("window", "const window i64[] = 3"), To(target)),
                testing::HasSubstr("local_window_size=3"));
  const std::string text = TextAfter(TwoLayersWith("both", "both = And(kept, causal)"), To(Target::kKvshare));
  EXPECT_THAT(text.substr(text.find("out1 = ")), testing::Not(testing::HasSubstr("local_window_size")));
}

TEST(SharedAttention, NeedsCausalityFromTheMaskOrFromTheAttribute) {
  std::string text = TwoLayersWith("both", "both = And(kept, near)");
  text = TwoLayersWith("out1", "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=1, is_causal=0}",
                       text);
  EXPECT_EQ(RewriteText(text, To(Target::kKvshare)).DeclineOf("shared-attention"),
            "neither its mask nor is_causal makes it causal");
  EXPECT_TRUE(RewriteText(TwoLayersWith("both", "both = And(kept, near)"), To(Target::kKvshare)).report.changed);
  EXPECT_EQ(RewriteText(WithText(text, "is_causal=0", "right_window_size=0"), To(Target::kKvshare))
                .DeclineOf("shared-attention"),
            "neither its mask nor is_causal makes it causal");
}

// Numbers that no model means: declined like any other, without an overflow.
TEST(SharedAttention, NumbersOutOfAllProportionAreNotKnown) {
  const std::string heads = TwoLayersWith(
      "out1", "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=9223372036854775807, is_causal=1}");
  EXPECT_EQ(RewriteText(heads, To(Target::kOrt)).DeclineOf("shared-attention"),
            "has no q_num_heads and kv_num_heads; needs them, or a query and a key of known rank 4");
  std::string head_size = TwoLayersWith("cos_table", "const cos_table f32[0,9223372036854775807] = 1");
  head_size = TwoLayersWith(
      "rotated", "rotated = RotaryEmbedding(out0, cos, sin) {num_heads=4, rotary_embedding_dim=-2}", head_size);
  EXPECT_EQ(RewriteText(head_size, To(Target::kKvshare)).DeclineOf("fold-rotary"),
            "RotaryEmbedding 'rotated' rotates -2 channels, its table serves 9223372036854775807 pairs");
}

TEST(SharedAttention, KeyAndValueMustComeFromOneLayer) {
  std::string text(kTwoLayers);
  text +=
      "input past_k2 f32[B,1,P,8]\ninput past_v2 f32[B,1,P,8]\n"
      "out9, present_k2, present_v2 = com.microsoft.GroupQueryAttention(q0, k0, k0, past_k2, past_v2, seqlens, total, "
      "cos_table, sin_table) {num_heads=4, kv_num_heads=1, do_rotary=1, local_window_size=4}\n";
  text = TwoLayersWith("vt", "vt = Transpose(present_v2) {perm=[0,2,1,3]}", text);
  const Rewritten result = RewriteText(text, To(Target::kKvshare));
  EXPECT_EQ(result.DeclineOf("shared-attention"), "key is borrowed from layer 0, value from layer 1");
  EXPECT_EQ(result.before, result.after);
}

TEST(SharedAttention, ConvertsToEachTarget) {
  EXPECT_THAT(
      TextAfter(kTwoLayers, To(Target::kKvshare)),
      testing::HasSubstr("out1 = kvshare.GroupQueryAttention(out0, _, _, _, _, seqlens, total, cos_table, sin_table, "
                         "_, _, _, _, _, _, _, _, present_k, present_v)"));
  EXPECT_THAT(
      TextAfter(kTwoLayers, To(Target::kOrt)),
      testing::HasSubstr("out1 = com.microsoft.GroupQueryAttention(out0, out1_empty_kv, out1_empty_kv, present_k, "
                         "present_v, seqlens, total, cos_table, sin_table)"));
  EXPECT_THAT(TextAfter(kTwoLayers, To(Target::kKvshareAttention)),
              testing::HasSubstr("out1 = kvshare.Attention(rotated, present_k, present_v, _, _, _, _, attention_mask) "
                                 "{q_num_heads=4, kv_num_heads=1, scale=1.0, is_causal=1, local_window_size=4}"));
}

TEST(SharedAttention, CarriesScaleAndSoftcapOver) {
  const std::string text = TwoLayersWith(
      "out1",
      "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=1, scale=0.5, softcap=30.5, is_causal=1}");
  EXPECT_THAT(TextAfter(text, To(Target::kOrt)), testing::HasSubstr("local_window_size=4, scale=0.5, softcap=30.5"));
}

TEST(SharedAttention, TakesAMaskOfAnotherInputWhereTheTargetTakesMasks) {
  const std::string text = TwoLayersWith("ones", "ones = ReduceSum(position_ids, one) {keepdims=0}");
  EXPECT_TRUE(RewriteText(text, To(Target::kKvshareAttention)).report.changed);
}

// What a saved optimised model carries: the default of the schema, written out.
TEST(SharedAttention, DefaultsWrittenOutAreNoDifference) {
  std::string text = TwoLayersWith("extents", "extents = Shape(attention_mask) {start=0}");
  text =
      TwoLayersWith("out1",
                    "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=1, scale=1.0, is_causal=1, "
                    "left_window_size=-1, right_window_size=-1, qk_matmul_output_mode=0, softcap=0.0}",
                    text);
  for (const Target target : {Target::kKvshare, Target::kKvshareAttention, Target::kOrt})
    EXPECT_TRUE(RewriteText(text, To(target)).report.changed);
}

// All shapes fixed, and what can be computed of them folded, as an execution provider sees a model.
TEST(SharedAttention, FixedShapesAreRead) {
  std::string text = TwoLayersWith("begin", "const begin i64[1] = 5");
  text = TwoLayersWith("T", "const T i64[1] = 8", text);
  text = TwoLayersWith("total64", "const total64 i64[1] = 8", text);
  const auto fix = [&](const std::string& from, const std::string& to) {
    for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
      text.replace(at, from.size(), to);
  };
  fix("[B,S]", "[2,3]");
  fix("[B,T]", "[2,8]");
  text += "rotated_again = Identity(rotated)\noutput rotated_again f32[2,3,32]\noutput rotated f32[2,3,32]\n";
  for (const Target target : {Target::kKvshare, Target::kKvshareAttention, Target::kOrt})
    EXPECT_TRUE(RewriteText(text, To(target)).report.changed);
  fix("rotated f32[2,3,32]", "rotated f32[2,4,32]");
  EXPECT_EQ(RewriteText(text, To(Target::kKvshare)).DeclineOf("shared-attention"),
            "its mask is made for 3 queries; its query is not known to have as many");
}

TEST(SharedAttention, DeclinesWithACode) {
  const Rewritten result = RewriteText(TwoLayersWith("window", "const window i64[] = 0"), To(Target::kKvshare));
  EXPECT_EQ(result.report.outcomes.front().code, "mask-unknown");
}

TEST(SharedAttention, NeedsTypeAndHeadSizeForAnEmptyKey) {
  EXPECT_EQ(
      RewriteText(WithText(kTwoLayers, "f32[B,1,T,8]", "i32[B,1,T,8]"), To(Target::kOrt)).DeclineOf("shared-attention"),
      "the element type of 'present_k' is 6; needs float, float16 or bfloat16 to make an empty key");
  std::string text = WithText(kTwoLayers, ",8]", ",D]");
  EXPECT_EQ(RewriteText(text, To(Target::kOrt)).DeclineOf("shared-attention"),
            "the head size of 'present_k' is not known, which an empty key needs");
}

TEST(SharedAttention, ALayerOfAnotherTargetIsNotTurnedOn) {
  Graph ours = GraphOf(kTwoLayers);
  ASSERT_TRUE(RewriteGraph(ours, To(Target::kKvshare)).ok());
  EXPECT_EQ(RewriteGraph(ours, To(Target::kOrt))->outcomes.front().reason,
            "is kvshare's already; option 'target' = 'ort' does not turn it back");
  Graph attention = GraphOf(kTwoLayers);
  ASSERT_TRUE(RewriteGraph(attention, To(Target::kKvshareAttention)).ok());
  EXPECT_EQ(RewriteGraph(attention, To(Target::kKvshare))->outcomes.front().reason,
            "is kvshare::Attention already; option 'target' = 'kvshare' does not turn it further");
}

}  // namespace
}  // namespace kvshare::graph
