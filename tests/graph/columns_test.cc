// Masks of columns and repeated heads, as PyTorch's exporter writes them: what is read of them, and what is left alone.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graph/layers.h"
#include "graph/masks.h"
#include "graph/rewrite_graph.h"
#include "tests/graph/torch_layers.h"

namespace kvshare::graph {
namespace {

RewriteReport Rewritten(Graph& graph, Target target) {
  RewriteOptions options;
  options.target = target;
  auto report = RewriteGraph(graph, options);
  EXPECT_TRUE(report.ok()) << (report.ok() ? "" : report.status().message());
  return *std::move(report);
}

std::string DeclineOf(const RewriteReport& report, std::string_view rule) {
  for (const auto& outcome : report.outcomes)
    if (outcome.rule == rule && !outcome.applied) return outcome.code + ": " + outcome.reason;
  return "";
}

TEST(ReadColumnMask, GivesWindowCausalityPaddingAndWhatItCounts) {
  const auto mask = ReadMask(GraphOf(kTorchLayers), "mask");
  ASSERT_TRUE(mask.ok()) << mask.status().message();
  EXPECT_EQ(mask->window, 4);
  EXPECT_TRUE(mask->causal);
  EXPECT_TRUE(mask->padding);
  EXPECT_EQ(mask->rank, 4);
  EXPECT_EQ(mask->key_mask, "attention_mask");
  ASSERT_TRUE(mask->columns.has_value());
  EXPECT_EQ(TextOf(*mask->columns->queries), "seq");
  EXPECT_EQ(TextOf(mask->columns->keys), "past + seq");
}

struct SameColumns {
  const char* name;
  const char* output;
  const char* line;
  int64_t window;
};

class ReadSameColumns : public testing::TestWithParam<SameColumns> {};

TEST_P(ReadSameColumns, GivesTheSameMeaning) {
  const auto mask = ReadMask(GraphOf(TorchLayersWith(GetParam().output, GetParam().line)), "mask");
  ASSERT_TRUE(mask.ok()) << mask.status().message();
  EXPECT_EQ(mask->window, GetParam().window);
  EXPECT_TRUE(mask->causal);
}

INSTANTIATE_TEST_SUITE_P(
    Surfaces, ReadSameColumns,
    testing::Values(SameColumns{"Turned", "causal", "causal = GreaterOrEqual(q, kv)", 4},
                    SameColumns{"TurnedWindow", "near", "near = Less(begin, kv)", 4},
                    SameColumns{"WindowWithItsFirst", "near", "near = GreaterOrEqual(kv, begin)", 5},
                    SameColumns{"NoWindow", "near", "near = Identity(true)", -1},
                    SameColumns{"LengthsAddedTheOtherWay", "T", "T = Add(S, P)", 4},
                    SameColumns{"BoundByTheNext", "causal", "next = Add(q, once)\ncausal = Less(kv, next)", 4}),
    [](const auto& test) { return std::string(test.param.name); });

struct OddColumns {
  const char* name;
  const char* output;
  const char* line;
  const char* reason;
};

class ReadOddColumns : public testing::TestWithParam<OddColumns> {};

TEST_P(ReadOddColumns, SaysWhatIsNotUnderstood) {
  const OddColumns& odd = GetParam();
  EXPECT_EQ(ReadMask(GraphOf(TorchLayersWith(odd.output, odd.line)), "mask").status().message(), odd.reason);
}

INSTANTIATE_TEST_SUITE_P(
    Forms, ReadOddColumns,
    testing::Values(
        OddColumns{"SeesTheNextKey", "causal", "next = Add(q, once)\ncausal = LessOrEqual(kv, next)",
                   "mask: LessOrEqual 'causal' lets a query see up to 1 keys after its own"},
        OddColumns{"NotItsOwnKey", "causal", "causal = Less(kv, q)",
                   "mask: Less 'causal' lets a query see up to -1 keys after its own"},
        OddColumns{"QueriesFromTheFirstKey", "at", "at = Identity(steps)",
                   "mask: Greater 'near' has its first query at column -4, its keys up to past + seq and seq queries"},
        OddColumns{"ComparedWithAnotherAxis", "q", "q = Unsqueeze(at3, two)",
                   "mask: Greater 'near' does not compare columns of keys [1,1,1,T] with columns of queries [1,1,S,1]"},
        OddColumns{"EmptyWindow", "window", "const window i64[] = 0",
                   "mask: Greater 'near' has a window of 0; needs at least 1"},
        OddColumns{"NothingCausal", "causal", "causal = Identity(true)",
                   "mask: 'mask' compares columns and is not causal"},
        OddColumns{"OtherColumnsKept", "kvs", "late = Add(kv, once)\nkvs = Expand(late, wide_bt)",
                   "mask: GatherND 'kept' does not take the first T columns of all rows of a mask"},
        OddColumns{"OtherRowsKept", "rows", "rows = Range(once, B, once)",
                   "mask: GatherND 'kept' does not take the first T columns of all rows of a mask"},
        OddColumns{"ComputedPadding", "flags", "other = Neg(attention_mask)\nflags = Cast(other) {to=9}",
                   "mask: GatherND 'kept' takes its padding from 'other'; needs a graph input of rank 2 there"},
        OddColumns{"AnExpandToAnotherShape", "whole", "whole = Concat(B1, two, S1, T1) {axis=0}",
                   "mask: Expand 'mask' does not expand to [B, 1, S, T]"},
        OddColumns{"Either", "both", "both = Or(visible, kept)",
                   "mask: Or 'both' is none of And, a comparison of columns, GatherND and padding as exporters write "
                   "them"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(JoinedCaches, AreReadAsCachesWithTheHeadsThatTheyHave) {
  const Graph graph = GraphOf(kTorchLayers);
  const auto layers = FindLayers(graph);
  ASSERT_EQ(layers.size(), 2U);
  EXPECT_EQ(layers[0].key_join.past, "past_k");
  EXPECT_EQ(layers[0].value_join.added, "v0");
  EXPECT_EQ(layers[0].kv_heads, 2);
  EXPECT_EQ(layers[0].window, 4);
  EXPECT_EQ(layers[1].source, 0);
  EXPECT_TRUE(layers[1].trouble.ok());
}

class EveryTarget : public testing::TestWithParam<Target> {};

TEST_P(EveryTarget, TakesHeadsAsTheyAreAndHasNoMaskLeft) {
  Graph graph = GraphOf(kTorchLayers);
  const RewriteReport report = Rewritten(graph, GetParam());
  const std::string text = ToText(graph.Copy());
  for (const char* gone : {"Expand", "GatherND", "LessOrEqual", "Greater"})
    EXPECT_THAT(text, testing::Not(testing::HasSubstr(gone)));
  for (const AttentionLayer& layer : report.after.layers) {
    EXPECT_EQ(layer.expansion, 1);
    EXPECT_EQ(layer.window, 4);
  }
  EXPECT_EQ(report.after.layers[1].source, 0);
}

INSTANTIATE_TEST_SUITE_P(Targets, EveryTarget,
                         testing::Values(Target::kKvshare, Target::kKvshareAttention, Target::kOrt));

// Pairs, groups, one source for all: who borrows from whom is in the graph.
TEST(JoinedCaches, MapsOfAnyKindAreFound) {
  std::string text(kTorchLayers);
  for (const int layer : {2, 3})
    text += fmt::format("pk{0} = Concat(past_k, k0) {{axis=2}}\nout{0} = Attention(q1, {1}, present_v, mask)\n", layer,
                        layer == 2 ? "pk2" : "present_k");
  text += "out4 = Attention(q1, pk2, present_v, mask)\nout5 = Attention(q1, present_k, present_v, mask)\n";
  const Graph graph = GraphOf(text);
  std::vector<int> sources;
  for (const Layer& layer : FindLayers(graph)) sources.push_back(layer.source);
  EXPECT_THAT(sources, testing::ElementsAre(-1, 0, -1, 0, 2, 0));
}

struct OddRepeat {
  const char* name;
  const char* output;
  const char* line;
  const char* reason;
};

class RepeatKv : public testing::TestWithParam<OddRepeat> {};

TEST_P(RepeatKv, LeavesWhatMayChangeMoreThanHeads) {
  const OddRepeat& odd = GetParam();
  Graph graph = GraphOf(TorchLayersWith(odd.output, odd.line));
  const RewriteReport report = Rewritten(graph, Target::kOrt);
  EXPECT_EQ(DeclineOf(report, "repeat-kv"), odd.reason);
}

INSTANTIATE_TEST_SUITE_P(
    NearMisses, RepeatKv,
    testing::Values(
        OddRepeat{"MoreBatches", "wide_shape", "wide_shape = Concat(T1, two, two, T1, eight) {axis=0}",
                  "key-is-expanded: Expand 'kw' makes an extent batch of 'present_k' into past + seq; needs it as it "
                  "is"},
        OddRepeat{"MoreKeys", "wide_shape", "wide_shape = Concat(B1, two, two, S1, eight) {axis=0}",
                  "key-is-expanded: Expand 'kw' makes an extent past + seq of 'present_k' into seq; needs it as it is"},
        OddRepeat{"OtherHeads", "wide_shape", "wide_shape = Concat(B1, one, four, T1, eight) {axis=0}",
                  "key-is-expanded: 'present_k' is not known to have 1 heads before Expand 'kw' repeats them"},
        OddRepeat{"KeysAndChannelsInterchanged", "flat_shape", "flat_shape = Concat(B1, four, eight, T1) {axis=0}",
                  "key-is-expanded: Reshape 'k' is not known to give [B, 4, T, D]"},
        OddRepeat{"TheValueIsNot", "v", "v = Identity(past_v)",
                  "key-is-expanded: 'past_v' is not repeated, its other half is; needs both"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(OwnAttention, LeavesACacheWhoseQueryWaitsForIt) {
  Graph graph = GraphOf(TorchLayersWith("q0",
                                        "q0 = Slice(k, nought1, seen, two)\nconst nought1 i64[1] = 0\n"
                                        "seen = Identity(S1)"));
  const RewriteReport report = Rewritten(graph, Target::kKvshare);
  EXPECT_EQ(DeclineOf(report, "own-attention"),
            "key-not-of-this-step: its query depends on 'present_k', which it would make");
}

TEST(OwnKeyMask, LeavesAMaskMadeForOtherKeys) {
  std::string text(kTorchLayers);
  text.replace(text.find("input past_v f32[batch,2,past,8]"), 32, "input past_v f32[batch,2,other,8]");
  text.replace(text.find("P1 = Shape(past_k)"), 18, "P1 = Shape(past_v)");
  Graph graph = GraphOf(text);
  const RewriteReport report = Rewritten(graph, Target::kKvshareAttention);
  EXPECT_EQ(DeclineOf(report, "own-key-mask"), "mask-keys: its mask is made for other + seq keys; it has past + seq");
}

TEST(OwnKeyMask, LeavesATriangleThatCountsFromTheFirstKey) {
  Graph graph = GraphOf(TorchLayersWith("out0", "out0 = Attention(q0, k, v, mask) {scale=0.5, is_causal=1}"));
  const RewriteReport report = Rewritten(graph, Target::kKvshareAttention);
  EXPECT_EQ(DeclineOf(report, "own-key-mask"),
            "not-causal: is_causal without a past counts from the first key, its mask from the last");
}

}  // namespace
}  // namespace kvshare::graph
