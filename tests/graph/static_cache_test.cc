// Caches of a fixed number of rows, which the graph writes itself.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graph/inspection.h"
#include "tests/graph/rewrite_text.h"
#include "tests/graph/torch_layers.h"
#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

// Layer 0 writes its rows where its lengths end; layer 1 takes the same cache.
constexpr std::string_view kScattered = R"(
input q f32[B,4,S,8]
input k f32[B,2,S,8]
input v f32[B,2,S,8]
input cache_k f32[B,2,64,8]
input cache_v f32[B,2,64,8]
input valid i64[B]
output y f32[B,4,S,8]
output all_k f32[B,2,64,8]
output all_v f32[B,2,64,8]
value x f32[B,4,S,8]
queries = Shape(q) {start=2, end=3}
at = Sub(valid, queries)
all_k = TensorScatter(cache_k, k, at)
all_v = TensorScatter(cache_v, v, at) {axis=2}
x = Attention(q, all_k, all_v, _, _, _, valid) {scale=0.5, is_causal=1, left_window_size=3}
y = Attention(x, all_k, all_v, _, _, _, valid) {is_causal=1}
)";

TEST(ScatteredCache, WhoseRowsEndWhereItsLengthsDoIsAppendedInPlace) {
  const std::string text = TextAfter(kScattered, To(Target::kKvshare));
  EXPECT_THAT(text, testing::HasSubstr(
                        "x_folded, all_k, all_v = kvshare.GroupQueryAttention(q_folded, k_folded, v_folded, cache_k, "
                        "cache_v, valid_seqlens_k, valid_total) {num_heads=4, kv_num_heads=2, do_rotary=0, "
                        "local_window_size=4, scale=0.5}"));
  EXPECT_THAT(text, testing::HasSubstr("valid_last = Sub(valid, valid_one)\nvalid_seqlens_k = Cast(valid_last) {to=6}\n"
                                       "valid_total = Cast(valid_rows) {to=6}"));
  EXPECT_THAT(text, testing::ContainsRegex("y_folded = kvshare.GroupQueryAttention\\(x_folded_1, _, _, _, _, "
                                           "valid_seqlens_k, valid_total, .*all_k, all_v\\)"));
  EXPECT_THAT(text, testing::Not(testing::HasSubstr("TensorScatter")));
}

TEST(ScatteredCache, ASecondRewriteChangesNothing) {
  Graph graph = GraphOf(kScattered);
  ASSERT_TRUE(RewriteGraph(graph, To(Target::kKvshare)).ok());
  const Rewritten again = RewriteIn(graph, To(Target::kKvshare));
  EXPECT_EQ(again.before, again.after);
  EXPECT_THAT(again.report.notes, testing::ElementsAre(testing::HasSubstr("have the target's form already")));
}

TEST(ScatteredCache, KeepsItsRowsInTheReport) {
  Graph graph = GraphOf(kScattered);
  const auto report = RewriteGraph(graph, To(Target::kKvshare));
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->before.layers[0].cache_rows, 64);
  EXPECT_EQ(report->after.layers[0].cache_rows, 64);
  for (const RuleSaving& saving : report->savings) EXPECT_EQ(saving.cache_bytes, 0) << saving.rule;
}

class NearlyScattered : public testing::TestWithParam<NearMiss> {};

// What cannot be proved is not assumed: the layer runs in kvshare's Attention as it is.
TEST_P(NearlyScattered, SaysWhyItIsNotAppendedAndMeansTheSame) {
  const NearMiss& miss = GetParam();
  const Rewritten result = RewriteText(TwoLayersWith(miss.output, miss.line, kScattered), To(Target::kKvshare));
  EXPECT_EQ(result.DeclineOf("scattered-cache"), miss.reason);
  const std::string text = TextAfter(TwoLayersWith(miss.output, miss.line, kScattered), To(Target::kKvshare));
  EXPECT_THAT(text, testing::Not(testing::HasSubstr("GroupQueryAttention")));
}

constexpr const char* kNotWhereRowsEnd =
    "nothing proves that 'at' is 'valid' less the number of queries, which is where new rows end";

INSTANTIATE_TEST_SUITE_P(
    NearMisses, NearlyScattered,
    testing::Values(
        NearMiss{"KeyAndValueOfOneCache", "x",
                 "x = Attention(q, all_k, all_k, _, _, _, valid) {scale=0.5, is_causal=1, left_window_size=3}",
                 "takes 'all_k' as key and as value; needs a cache of each"},
        NearMiss{"ACacheOfAnotherLayerToo", "y",
                 "input other f32[B,2,64,8]\nall_o = TensorScatter(other, k, at)\n"
                 "y = Attention(x, all_o, all_v, _, _, _, valid) {is_causal=1}",
                 "takes 'all_v', which layer 1 takes beside another cache"},
        NearMiss{"OtherIndices", "at", "input start i64[B]\nat = Identity(start)", kNotWhereRowsEnd},
        NearMiss{"IndicesOfOtherLengths", "at", "input other i64[B]\nat = Sub(other, queries)", kNotWhereRowsEnd},
        NearMiss{"OneRowTooEarly", "at", "const two i64[1] = 2\nat = Sub(valid, two)", kNotWhereRowsEnd},
        NearMiss{"NoIndices", "all_k", "all_k = TensorScatter(cache_k, k)",
                 "nothing proves that '' is 'valid' less the number of queries, which is where new rows "
                 "end"},
        NearMiss{"AnotherAxis", "all_k", "all_k = TensorScatter(cache_k, k, at) {axis=1}",
                 "TensorScatter 'all_k' writes along axis 1 of a cache of rank 4; needs axis 2 of "
                 "4"},
        NearMiss{"Circular", "all_v", "all_v = TensorScatter(cache_v, v, at) {mode='circular'}",
                 "TensorScatter 'all_v' has mode 'circular'; needs 'linear'"},
        NearMiss{"ReadElsewhere", "all_k",
                 "all_k = TensorScatter(cache_k, k, at)\noutput spied f32[B,2,64,8]\nspied = Neg(all_k)",
                 "'all_k' is read by Neg 'spied' too"},
        NearMiss{"MoreRowsThanQueries", "all_k", "input more f32[B,2,R,8]\nall_k = TensorScatter(cache_k, more, at)",
                 "TensorScatter 'all_k' writes R rows; its query has S"},
        NearMiss{"Masked", "x",
                 "input bias f32[B,1,S,64]\nx = Attention(q, all_k, all_v, bias, _, _, valid) {is_causal=1}",
                 "has a mask beside nonpad_kv_seqlen"},
        NearMiss{"NotCausal", "x", "x = Attention(q, all_k, all_v, _, _, _, valid)", "is not causal"},
        NearMiss{"NoLengths", "x", "input bias f32[B,1,S,64]\nx = Attention(q, all_k, all_v, bias)",
                 "has no nonpad_kv_seqlen, which says how many rows it sees"},
        NearMiss{"PresentIsRead", "x",
                 "x, own_k = Attention(q, all_k, all_v, _, _, _, valid) {is_causal=1}\n"
                 "output spied f32[B,2,64,8]\nspied = Neg(own_k)",
                 "its output 1 'own_k' is read"},
        NearMiss{"Turned", "all_k", "rows = TensorScatter(cache_k, k, at)\nall_k = Transpose(rows) {perm=[0,1,2,3]}",
                 "a Transpose lies between TensorScatter 'rows' and it"},
        NearMiss{"HalfOfAnyLength", "all_v", "input any_v f32[B,2,C,8]\nall_v = TensorScatter(any_v, v, at)",
                 "the number of rows of 'cache_k' is not fixed"},
        NearMiss{"PaddedByOthers", "all_k",
                 "const pads i64[8] = 0 0 0 0 0 0 1 0\nroomy = Pad(cache_k, pads)\nall_k = TensorScatter(roomy, k, at)",
                 "'valid' and the room in 'cache_k' are not known to count one sequence"},
        NearMiss{"HalfACache", "all_v", "all_v = Identity(cache_v)",
                 "'all_v' is not a cache with new rows; its other half is"}),
    [](const auto& test) { return std::string(test.param.name); });

// mobius's: rows are [B, C, Hkv * D], and the caller gives both the rows to write and the lengths.
constexpr std::string_view kFlat = R"(
input q f32[B,S,32]
input k f32[B,S,16]
input cache_k f32[B,64,16]
input cache_v f32[B,64,16]
input at i64[B]
input valid i64[B]
input bias f32[B,1,S,64]
output y f32[B,S,32]
output updated_k f32[B,64,16]
output updated_v f32[B,64,16]
updated_k = TensorScatter(cache_k, k, at) {axis=1}
updated_v = TensorScatter(cache_v, k, at) {axis=1}
x = Attention(q, updated_k, updated_v, _, _, _, valid) {q_num_heads=4, kv_num_heads=2, is_causal=1}
y = Attention(x, updated_k, updated_v, bias, _, _, valid) {q_num_heads=4, kv_num_heads=2}
)";

TEST(StaticCache, RunsInKvsharesAttentionAsItIs) {
  for (const Target target : {Target::kKvshare, Target::kKvshareAttention}) {
    const std::string text = TextAfter(kFlat, To(target));
    EXPECT_THAT(text, testing::HasSubstr("x = kvshare.Attention(q, updated_k, updated_v, _, _, _, valid) "
                                         "{q_num_heads=4, kv_num_heads=2, is_causal=1}"));
    EXPECT_THAT(text, testing::HasSubstr("y = kvshare.Attention(x, updated_k, updated_v, bias, _, _, valid) "
                                         "{q_num_heads=4, kv_num_heads=2}"));
    EXPECT_THAT(text, testing::HasSubstr("updated_k = TensorScatter(cache_k, k, at) {axis=1}"));
  }
}

TEST(StaticCache, OfOnnxRuntimeIsLeftAndSaysSo) {
  const Rewritten result = RewriteText(kFlat, To(Target::kOrt));
  EXPECT_EQ(result.before, result.after);
  EXPECT_EQ(result.DeclineOf("own-attention"),
            "TensorScatter 'updated_k' writes its cache; needs option 'target' = 'kvshare'");
  EXPECT_EQ(result.CodedDeclineOf("shared-attention"),
            "source-form: source layer 0 stayed Attention, whose cache may have gaps where GroupQueryAttention counts "
            "lengths; needs GroupQueryAttention there, or option 'target' = 'kvshare-attention'");
}

TEST(StaticCache, OwnLayersStayWhereTheyShall) {
  RewriteOptions options = To(Target::kKvshare);
  options.keep_own = true;
  const std::string text = TextAfter(kFlat, options);
  EXPECT_THAT(text, testing::HasSubstr("x = Attention(q"));
  EXPECT_THAT(text, testing::HasSubstr("y = kvshare.Attention(x"));
}

TEST(StaticCache, ASecondRewriteChangesNothing) {
  for (const Target target : {Target::kKvshare, Target::kKvshareAttention}) {
    Graph graph = GraphOf(kFlat);
    ASSERT_TRUE(RewriteGraph(graph, To(target)).ok());
    const Rewritten again = RewriteIn(graph, To(target));
    EXPECT_EQ(again.before, again.after);
    EXPECT_THAT(again.report.notes, testing::ElementsAre(testing::HasSubstr("have the target's form already")));
  }
}

// A triangle without lengths begins at the first key in ai.onnx, and ends at the last in kvshare.
TEST(StaticCache, ATriangleWithoutLengthsIsLeft) {
  const std::string text = TwoLayersWith(
      "x", "x = Attention(q, updated_k, updated_v, bias) {q_num_heads=4, kv_num_heads=2, is_causal=1}", kFlat);
  EXPECT_EQ(RewriteText(text, To(Target::kKvshare)).CodedDeclineOf("static-cache"),
            "not-causal: is_causal without a past counts from the first key");
}

TEST(ScatteredCache, ABorrowerWithOtherLengthsStaysOnIt) {
  const std::string text = TwoLayersWith(
      "y", "input others i64[B]\ny = Attention(x, all_k, all_v, _, _, _, others) {is_causal=1}", kScattered);
  EXPECT_EQ(RewriteText(text, To(Target::kKvshare)).DeclineOf("shared-attention"),
            "'others' is not known to count what source layer 0 counts");
  EXPECT_THAT(TextAfter(text, To(Target::kKvshare)),
              testing::HasSubstr("y = kvshare.Attention(x, all_k, all_v, _, _, _, others)"));
}

// Of keys that are joined, too: they are fewer than there are.
TEST(StaticCache, LengthsThatAreNotAllKeysStay) {
  const std::string text =
      TorchLayersWith("out0", "input ends i64[batch]\nout0 = Attention(q0, k, v, mask, _, _, ends) {scale=0.5}");
  EXPECT_EQ(RewriteText(text, To(Target::kKvshare)).DeclineOf("own-attention"),
            "has nonpad_kv_seqlen, which is not converted");
  EXPECT_THAT(TextAfter(text, To(Target::kKvshare)),
              testing::HasSubstr("out0 = kvshare.Attention(q0, present_k, present_v, mask, _, _, ends)"));
}

// Of a cache that GroupQueryAttention writes, too.
TEST(StaticCache, LengthsOfItsOwnBesideAMaskStay) {
  const std::string text = TwoLayersWith(
      "out1", "input ends i64[B]\nout1 = Attention(rotated, k1, v1, bias, _, _, ends) {q_num_heads=4, kv_num_heads=1}");
  EXPECT_EQ(RewriteText(text, To(Target::kKvshare)).CodedDeclineOf("shared-attention"),
            "own-lengths: has a mask beside nonpad_kv_seqlen");
  EXPECT_THAT(TextAfter(text, To(Target::kKvshare)),
              testing::HasSubstr("out1 = kvshare.Attention(rotated, present_k, present_v, bias, _, _, ends)"));
}

TEST(ScatteredCache, ThatGrowsAsOnnx25WritesItCountsWhatItCounted) {
  // As many new keys as queries: known by the name of their extent.
  Graph graph = GraphOf(std::string(kTwoLayers) + "value q0 f32[B,S,32]\nvalue k0 f32[B,S,8]\n");
  ASSERT_TRUE(RewriteGraph(graph, To(Target::kOnnx25)).ok());
  ASSERT_THAT(ToText(graph.Copy()), testing::HasSubstr("TensorScatter"));
  const Rewritten back = RewriteIn(graph, To(Target::kKvshare));
  EXPECT_EQ(back.DeclineOf("scattered-cache"), "");
  EXPECT_EQ(back.DeclineOf("shared-attention"), "");
  const std::string text = ToText(graph.Copy());
  EXPECT_THAT(text, testing::ContainsRegex("present_k, present_v = kvshare.GroupQueryAttention\\(.*, past_k, past_v, "
                                           "seqlens, total\\) .*local_window_size=4"));
  EXPECT_THAT(text,
              testing::ContainsRegex("= kvshare.GroupQueryAttention\\(.*, _, _, _, _, seqlens, total, .*present_k, "
                                     "present_v\\)"));
  for (const char* gone : {"Pad(", "TensorScatter"}) EXPECT_THAT(text, testing::Not(testing::HasSubstr(gone)));
}

// A key of no rows is upstream's shared form, which appends nothing.
TEST(StandardGqa, StaysWhereItsKeyMayHaveOtherTokensThanItsQuery) {
  const std::string text = TwoLayersWith("k0", "k0 = Slice(q0, from, till, one)\ninput from i64[1]\ninput till i64[1]");
  EXPECT_EQ(RewriteText(text, To(Target::kOnnx25)).CodedDeclineOf("standard-gqa"),
            "key-not-of-this-step: its key is not known to have as many tokens as its query");
}

TEST(StandardGqa, StaysWhereItsScaleIsBelow0) {
  const std::string text = WithText(kTwoLayers, "scale=1.0", "scale=-1.0");
  EXPECT_EQ(RewriteText(text, To(Target::kOnnx25)).CodedDeclineOf("standard-gqa"),
            "attribute-unknown: has scale -1, whose square root ai.onnx's Attention takes");
  EXPECT_EQ(RewriteText(text, To(Target::kOnnx25)).CodedDeclineOf("standard-attention"),
            "attribute-unknown: has scale -1, whose square root ai.onnx's Attention takes");
}

TEST(StaticCache, OfAForeignWriterStaysWithItsMask) {
  const std::string scattered = R"(
input q f32[1,2,S,8]
input k f32[S,1,2,8]
input cache_k f32[1,2,64,8]
input cache_v f32[1,2,64,8]
input rows i64[S,1]
input seen bool[1,1,S,64]
output y f32[1,2,S,8]
turned_k = Transpose(cache_k) {perm=[2,0,1,3]}
turned_v = Transpose(cache_v) {perm=[2,0,1,3]}
written_k = ScatterND(turned_k, rows, k)
written_v = ScatterND(turned_v, rows, k)
all_k = Transpose(written_k) {perm=[1,2,0,3]}
all_v = Transpose(written_v) {perm=[1,2,0,3]}
y = Attention(q, all_k, all_v, seen)
)";
  const Rewritten result = RewriteText(scattered, To(Target::kKvshare));
  EXPECT_EQ(result.DeclineOf("scattered-cache"),
            "ScatterND 'written_k' writes where its indices say, which need not be rows in order");
  EXPECT_THAT(TextAfter(scattered, To(Target::kKvshare)),
              testing::HasSubstr("y = kvshare.Attention(q, all_k, all_v, seen)"));
}

}  // namespace
}  // namespace kvshare::graph
