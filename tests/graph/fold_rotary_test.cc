// The rotary embedding of a borrowed layer's query: when GroupQueryAttention does it itself, and why it stays.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/graph/rewrite_text.h"
#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

class FoldRotary : public testing::TestWithParam<NearMiss> {};

TEST_P(FoldRotary, KeepsTheRotaryEmbeddingAndSaysWhy) {
  const std::string text = TwoLayersWith(GetParam().output, GetParam().line);
  EXPECT_EQ(RewriteText(text, To(Target::kKvshare)).DeclineOf("fold-rotary"), GetParam().reason);
  EXPECT_THAT(TextAfter(text, To(Target::kKvshare)),
              testing::HasSubstr("out1 = kvshare.GroupQueryAttention(rotated, "));
}

INSTANTIATE_TEST_SUITE_P(
    NearMisses, FoldRotary,
    testing::Values(
        NearMiss{"ComputedPositions", "sin", "later = Add(position_ids, one)\nsin = Gather(sin_table, later)",
                 "cos is gathered by 'position_ids', sin by 'later'"},
        NearMiss{"ComputedByANode", "rotated",
                 "later = Add(position_ids, one)\nrotated = RotaryEmbedding(out0, cos_table, sin_table, later) "
                 "{num_heads=4}",
                 "positions 'later' are computed; needs a graph input that counts the kept tokens"},
        NearMiss{"NotGathered", "cos", "cos = Identity(cos_table)", "rotary table 'cos' is not gathered by position"},
        NearMiss{"GatheredByAForeignOperator", "cos", "cos = com.microsoft.Gather(cos_table, position_ids)",
                 "rotary table 'cos' is not gathered by position"},
        NearMiss{"OfAnotherDomain", "rotated", "rotated = com.microsoft.RotaryEmbedding(out0, cos, sin) {num_heads=4}",
                 "RotaryEmbedding 'rotated' is com.microsoft's; needs ai.onnx's"},
        NearMiss{"SourceTakesPositions", "out0",
                 "out0, present_k, present_v = com.microsoft.GroupQueryAttention(q0, k0, k0, past_k, past_v, "
                 "seqlens, total, cos_table, sin_table, position_ids) {num_heads=4, kv_num_heads=1, do_rotary=1, "
                 "local_window_size=4}",
                 "source layer 0 takes positions from an input"},
        NearMiss{"OtherTable", "cos", "cos = Gather(sin_table, position_ids)",
                 "source layer 0 rotates by 'cos_table' and 'sin_table', the query by 'sin_table' and 'sin_table'"},
        NearMiss{"OtherTableOfSines", "sin", "sin = Gather(cos_table, position_ids)",
                 "source layer 0 rotates by 'cos_table' and 'sin_table', the query by 'cos_table' and 'cos_table'"},
        NearMiss{"Interleaved", "rotated", "rotated = RotaryEmbedding(out0, cos, sin) {num_heads=4, interleaved=1}",
                 "source layer 0 has rotary_interleaved 0, the query's rotary embedding 1"},
        NearMiss{"InterleavedOfNoMeaning", "rotated",
                 "rotated = RotaryEmbedding(out0, cos, sin) {num_heads=4, interleaved=2}",
                 "source layer 0 has rotary_interleaved 0, the query's rotary embedding 2"},
        NearMiss{"OtherHeads", "rotated", "rotated = RotaryEmbedding(out0, cos, sin) {num_heads=2}",
                 "RotaryEmbedding 'rotated' has 2 heads, the layer 4"},
        NearMiss{"PartOfTheHead", "rotated",
                 "rotated = RotaryEmbedding(out0, cos, sin) {num_heads=4, rotary_embedding_dim=4}",
                 "RotaryEmbedding 'rotated' rotates 4 channels, its table serves 4 pairs"},
        NearMiss{"SourceDoesNotRotate", "out0",
                 "out0, present_k, present_v = com.microsoft.GroupQueryAttention(q0, k0, k0, past_k, past_v, seqlens, "
                 "total) {num_heads=4, kv_num_heads=1, do_rotary=0, local_window_size=4}",
                 "source layer 0 does not rotate its keys itself"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(FoldRotary, TakesPositionsGivenToRotaryEmbeddingItself) {
  const std::string text =
      TwoLayersWith("rotated", "rotated = RotaryEmbedding(out0, cos_table, sin_table, position_ids) {num_heads=4}");
  EXPECT_THAT(TextAfter(text, To(Target::kKvshare)), testing::Not(testing::HasSubstr("RotaryEmbedding")));
}

TEST(FoldRotary, NeedsTheLengthsOfTheSource) {
  EXPECT_EQ(RewriteText(UpstreamsForm(), To(Target::kKvshare)).DeclineOf("fold-rotary"),
            "counts other lengths than source layer 0");
}

}  // namespace
}  // namespace kvshare::graph
