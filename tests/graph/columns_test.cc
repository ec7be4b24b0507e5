// Masks of columns and repeated heads, as PyTorch's exporter writes them: what is read of them, and what is left alone.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graph/layers.h"
#include "graph/masks.h"
#include "tests/graph/rewrite_text.h"
#include "tests/graph/torch_layers.h"

namespace kvshare::graph {
namespace {

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

// kTorchLayers whose caches keep the last 3 rows: the exporter counts columns from the first row that is left.
std::string CutLayers(std::string_view from = kTorchLayers) {
  std::string text = TwoLayersWith(
      "columns",
      "const least i64[] = -3\nbeyond = Add(least, P)\nexcess = Max(nought, beyond)\nrange = Range(nought, T, once)\n"
      "columns = Add(range, excess)",
      from);
  text = TwoLayersWith("T1",
                       "const minus i64[] = -1\nT1 = Reshape(T, last)\ngone = Mul(minus, excess)\nleft = Add(P, gone)\n"
                       "held = Max(nought, left)\nkeys = Add(S, held)\nkeys1 = Reshape(keys, last)",
                       text);
  text = TwoLayersWith("present_k",
                       "const least1 i64[1] = -3\nconst most i64[1] = 9223372036854775807\n"
                       "kept_k = Slice(past_k, least1, most, two, one)\nall_k = Concat(kept_k, k0) {axis=-2}\n"
                       "present_k = Slice(all_k, least1, most, two, one)",
                       text);
  text = TwoLayersWith("present_v",
                       "kept_v = Slice(past_v, least1, most, two, one)\nall_v = Concat(kept_v, v0) {axis=-2}\n"
                       "present_v = Slice(all_v, least1, most, two, one)",
                       text);
  text = WithText(WithText(text, "k5 = Unsqueeze(present_k", "k5 = Unsqueeze(all_k"), "v5 = Unsqueeze(present_v",
                  "v5 = Unsqueeze(all_v");
  text = WithText(WithText(text, "two, two, T1, eight", "two, two, keys1, eight"), "four, T1, eight",
                  "four, keys1, eight");
  return WithText(text, "past + seq,8]", "rows,8]");
}

TEST(ReadColumnMask, OfACutCacheIsReadAsIfNothingWereDropped) {
  const Graph graph = GraphOf(CutLayers());
  const auto mask = ReadMask(graph, "mask");
  ASSERT_TRUE(mask.ok()) << mask.status().message();
  EXPECT_EQ(mask->window, 4);
  EXPECT_TRUE(mask->padding);
  EXPECT_EQ(TextOf(mask->columns->excess), "Max(0, past - 3)");
  EXPECT_EQ(TextOf(mask->columns->keys), "past + seq");
  const auto layers = FindLayers(graph);
  EXPECT_EQ(layers[0].key_join.past, "past_k");
  EXPECT_EQ(layers[0].key_join.last, 3);
  EXPECT_EQ(layers[0].expansion, 2);
}

// The node takes no mask that has more columns than it has keys, so nothing is dropped where it runs.
TEST(CutCache, IsServedWherePaddingStays) {
  const std::string text = TextAfter(CutLayers(), To(Target::kKvshareAttention));
  EXPECT_THAT(text, testing::HasSubstr("out0 = kvshare.Attention(q0, all_k, all_v, attention_mask_padding) {scale=0.5, "
                                       "is_causal=1, local_window_size=4}"));
  EXPECT_THAT(text, testing::HasSubstr("present_k = Slice(all_k, least1, most, two, one)"));
  for (const Target target : {Target::kKvshare, Target::kOrt})
    EXPECT_EQ(
        RewriteText(CutLayers(), To(target)).CodedDeclineOf("own-attention"),
        "cache-is-cut: the graph keeps the last 3 rows of 'past_k', and GroupQueryAttention keeps all; needs option "
        "'target' = 'kvshare-attention', or an export with whole caches");
}

TEST(CutCache, StaysWhereItsMaskCountsRowsThatItsKeysHave) {
  const std::string whole = WithText(CutLayers(), "all_k = Concat(kept_k", "all_k = Concat(past_k");
  EXPECT_EQ(
      RewriteText(whole, To(Target::kKvshareAttention)).CodedDeclineOf("own-key-mask"),
      "mask-keys: its mask has past + seq columns, Max(0, past - 3) of them for rows that are gone; it has past + "
      "seq keys");
  const std::string other = WithText(CutLayers(), "const least i64[] = -3", "const least i64[] = -2");
  EXPECT_EQ(RewriteText(other, To(Target::kKvshareAttention)).CodedDeclineOf("own-key-mask"),
            "mask-keys: its mask has past + seq columns, Max(0, past - 2) of them for rows that are gone; it has "
            "-Max(0, past - 3) + past + seq keys");
  const std::string moved =
      WithText(CutLayers(), "kvs = Expand(kv, wide_bt)", "later = Add(kv, P)\nkvs = Expand(later, wide_bt)");
  EXPECT_EQ(ReadMask(GraphOf(moved), "mask").status().message(),
            "mask: GatherND 'kept' does not take the first T columns of all rows of a mask");
  const std::string two_excesses = TwoLayersWith(
      "causal",
      "const fewer i64[] = -2\nbeyond2 = Add(fewer, P)\nexcess2 = Max(nought, beyond2)\nrange2 = Add(range, excess2)\n"
      "flat2 = Unsqueeze(range2, front)\nkv2 = Unsqueeze(flat2, two)\ncausal = LessOrEqual(kv2, q)",
      CutLayers());
  EXPECT_EQ(ReadMask(GraphOf(two_excesses), "mask").status().message(),
            "mask: And 'visible' joins masks with Max(0, past - 3) and with Max(0, past - 2) columns too many");
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
    testing::Values(
        SameColumns{"Turned", "causal", "causal = GreaterOrEqual(q, kv)", 4},
        SameColumns{"TurnedWindow", "near", "near = Less(begin, kv)", 4},
        SameColumns{"WindowWithItsFirst", "near", "near = GreaterOrEqual(kv, begin)", 5},
        SameColumns{"NoWindow", "near", "near = Identity(true)", -1},
        SameColumns{"QueriesFromTheFirstColumnOn", "near", "near = GreaterOrEqual(q, nought)", -1},
        SameColumns{"LengthsAddedTheOtherWay", "T", "T = Add(S, P)", 4},
        SameColumns{"PaddingOfRowsReshaped", "flags",
                    "rest = Concat(B1, last) {axis=0}\nsame = Reshape(attention_mask, rest) {allowzero=1}\n"
                    "flags = Cast(same) {to=9}",
                    4},
        SameColumns{
            "FlagsReshaped", "flags",
            "value ints bool[batch,total]\nints = Cast(attention_mask) {to=9}\nC1 = Shape(attention_mask) {start=1}\n"
            "rest = Concat(B1, C1) {axis=0}\nflags = Reshape(ints, rest)",
            4},
        SameColumns{"BoundByTheNext", "causal", "next = Add(q, once)\ncausal = Less(kv, next)", 4}),
    [](const auto& test) { return std::string(test.param.name); });

// The caller gives `batch` sequences; a tool has folded what numbers them.
Matched<MaskMeaning> MaskOfFixedBatch(const std::string& batch, const std::string& numbers) {
  std::string text = TorchLayersWith("b", fmt::format("const b i64[{},1,1,1] = {}", batch, numbers));
  for (size_t at = 0; (at = text.find("[batch,", at)) != std::string::npos;) text.replace(at + 1, 5, batch);
  return ReadMask(GraphOf(text), "mask");
}

TEST(ReadColumnMask, OfAFixedBatchHasItsSequencesFolded) {
  for (const auto& [batch, numbers] : {std::pair{"1", "0"}, std::pair{"2", "0 1"}}) {
    const auto mask = MaskOfFixedBatch(batch, numbers);
    ASSERT_TRUE(mask.ok()) << mask.status().message();
    EXPECT_EQ(mask->window, 4);
    EXPECT_TRUE(mask->padding);
  }
  for (const auto& [batch, numbers] :
       {std::pair{"1", "1"}, std::pair{"2", "1 0"}, std::pair{"2", "0 0"}, std::pair{"3", "0 1 3"}})
    EXPECT_EQ(MaskOfFixedBatch(batch, numbers).status().message(),
              "mask: GatherND 'kept' does not take the first T columns of all rows of a mask");
}

class ReadOddColumns : public testing::TestWithParam<NearMiss> {};

TEST_P(ReadOddColumns, SaysWhatIsNotUnderstood) {
  const NearMiss& odd = GetParam();
  EXPECT_EQ(ReadMask(GraphOf(TorchLayersWith(odd.output, odd.line)), "mask").status().message(), odd.reason);
}

INSTANTIATE_TEST_SUITE_P(
    Forms, ReadOddColumns,
    testing::Values(
        NearMiss{"SeesTheNextKey", "causal", "next = Add(q, once)\ncausal = LessOrEqual(kv, next)",
                 "mask: LessOrEqual 'causal' lets a query see up to 1 keys after its own"},
        NearMiss{"NotItsOwnKey", "causal", "causal = Less(kv, q)",
                 "mask: Less 'causal' lets a query see up to -1 keys after its own"},
        NearMiss{
            "QueriesFromTheFirstKey", "at", "at = Identity(steps)",
            "mask: Greater 'near' has its first query at column -4, and the first new one of its past + seq keys at "
            "past; needs one column for both"},
        NearMiss{"ComparedWithAnotherAxis", "q", "q = Unsqueeze(at3, two)",
                 "mask: Greater 'near' does not compare columns of keys [1,1,1,T] with columns of queries [1,1,S,1]"},
        NearMiss{"WindowOfBothDirections", "near",
                 "apart = Sub(q, kv)\nfar = Abs(apart)\nnear = LessOrEqual(far, window)",
                 "mask: LessOrEqual 'near' bounds the distance between query and key in both directions"},
        NearMiss{
            "QueriesFromTheSecondColumnOn", "near", "near = GreaterOrEqual(q, once)",
            "mask: GreaterOrEqual 'near' does not compare columns of keys [1,1,1,T] with columns of queries [1,1,S,1]"},
        NearMiss{"EmptyWindow", "window", "const window i64[] = 0",
                 "mask: Greater 'near' has a window of 0; needs at least 1"},
        NearMiss{"NothingCausal", "causal", "causal = Identity(true)",
                 "mask: 'mask' compares columns and is not causal"},
        NearMiss{"OtherColumnsKept", "kvs", "late = Add(kv, once)\nkvs = Expand(late, wide_bt)",
                 "mask: GatherND 'kept' does not take the first T columns of all rows of a mask"},
        NearMiss{"OtherRowsKept", "rows", "rows = Range(once, B, once)",
                 "mask: GatherND 'kept' does not take the first T columns of all rows of a mask"},
        NearMiss{"PaddingOfOtherRows", "flags",
                 "rest = Concat(S1, last) {axis=0}\nsame = Reshape(attention_mask, rest)\nflags = Cast(same) {to=9}",
                 "mask: GatherND 'kept' takes its padding from 'same'; needs a graph input of rank 2 there"},
        NearMiss{"PaddingOfNoRows", "flags",
                 "const zeros i64[2] = 0 -1\nsame = Reshape(attention_mask, zeros) {allowzero=1}\n"
                 "flags = Cast(same) {to=9}",
                 "mask: GatherND 'kept' takes its padding from 'same'; needs a graph input of rank 2 there"},
        NearMiss{"ComputedPadding", "flags", "other = Neg(attention_mask)\nflags = Cast(other) {to=9}",
                 "mask: GatherND 'kept' takes its padding from 'other'; needs a graph input of rank 2 there"},
        NearMiss{"PaddingOfNumbers", "flags", "flags = Identity(attention_mask)",
                 "mask: GatherND 'kept' does not take its padding from a cast to bool"},
        NearMiss{"PaddingOfAnotherRank", "kept", "kept = Unsqueeze(flags, front)",
                 "mask: Unsqueeze 'kept' does not make padding [B,1,1,T] of a mask"},
        NearMiss{"PaddingOfFewerKeys", "kept",
                 "const first i64[1] = 0\ncut = Slice(attention_mask, first, S1, one)\ncut_flags = Cast(cut) {to=9}\n"
                 "kept = Unsqueeze(cut_flags, middle)",
                 "mask: And 'both' joins masks of past + seq and of seq keys"},
        NearMiss{"PaddingOfTwoMasks", "both",
                 "input other i64[batch,total]\nconst first i64[1] = 0\ncut = Slice(other, first, T1, one)\n"
                 "cut_flags = Cast(cut) {to=9}\nkept_too = Unsqueeze(cut_flags, middle)\n"
                 "either = And(visible, kept)\nboth = And(either, kept_too)",
                 "mask: And 'both' joins padding of 'attention_mask' and of 'other'"},
        NearMiss{"AConditionOfTheCaller", "near", "input given bool[batch,1,seq,total]\nnear = Identity(given)",
                 "mask: the meaning of 'given' is not known"},
        NearMiss{"AnExpandToAnotherShape", "whole", "whole = Concat(B1, two, S1, T1) {axis=0}",
                 "mask: Expand 'mask' does not expand to [B, 1, S, T]"},
        NearMiss{"OneOfTwo", "both", "both = Xor(visible, kept)",
                 "mask: Xor 'both' is none of And, a comparison of columns, GatherND and padding as exporters write "
                 "them"},
        NearMiss{"Either", "both", "both = Or(visible, kept)",
                 "mask: Or 'both' lets queries see more than causality and a window do; it is needed whole"}),
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
  const Rewritten result = RewriteIn(graph, To(GetParam()));
  const std::string text = ToText(graph.Copy());
  for (const char* gone : {"Expand", "GatherND", "LessOrEqual", "Greater"})
    EXPECT_THAT(text, testing::Not(testing::HasSubstr(gone)));
  for (const AttentionLayer& layer : result.report.after.layers) {
    EXPECT_EQ(layer.expansion, 1);
    EXPECT_EQ(layer.window, 4);
  }
  EXPECT_EQ(result.report.after.layers[1].source, 0);
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

class RepeatKv : public testing::TestWithParam<NearMiss> {};

TEST_P(RepeatKv, LeavesWhatMayChangeMoreThanHeads) {
  const NearMiss& odd = GetParam();
  Graph graph = GraphOf(TorchLayersWith(odd.output, odd.line));
  const Rewritten result = RewriteIn(graph, To(Target::kOrt));
  EXPECT_EQ(result.CodedDeclineOf("repeat-kv"), odd.reason);
}

INSTANTIATE_TEST_SUITE_P(
    NearMisses, RepeatKv,
    testing::Values(
        NearMiss{"MoreBatches", "wide_shape", "wide_shape = Concat(T1, two, two, T1, eight) {axis=0}",
                 "key-is-expanded: Expand 'kw' makes an extent batch of 'present_k' into past + seq; needs it as it "
                 "is"},
        NearMiss{"MoreKeys", "wide_shape", "wide_shape = Concat(B1, two, two, S1, eight) {axis=0}",
                 "key-is-expanded: Expand 'kw' makes an extent past + seq of 'present_k' into seq; needs it as it is"},
        NearMiss{"OtherHeads", "wide_shape", "wide_shape = Concat(B1, one, four, T1, eight) {axis=0}",
                 "key-is-expanded: 'present_k' is not known to have 1 heads before Expand 'kw' repeats them"},
        NearMiss{"KeysAndChannelsInterchanged", "flat_shape", "flat_shape = Concat(B1, four, eight, T1) {axis=0}",
                 "key-is-expanded: Reshape 'k' is not known to give [B, 4, T, D]"},
        NearMiss{"ToAShapeOfTheCaller", "wide_shape",
                 "odd = Mul(T1, one)\nwide_shape = Concat(B1, two, two, odd, eight) {axis=0}",
                 "key-is-expanded: Expand 'kw' has a shape that is not known"},
        NearMiss{"BehindAPast", "out0",
                 "input wide_k f32[batch,4,past,8]\ninput wide_v f32[batch,4,past,8]\n"
                 "out0, pk0, pv0 = Attention(q0, k, v, mask, wide_k, wide_v) {scale=0.5}",
                 "own-past: repeats its new heads, and has a past of as many"},
        NearMiss{"WhoseKeysAreAnOutput", "out0", "out0, pk0 = Attention(q0, k, v, mask) {scale=0.5}",
                 "output-is-read: has an output 1 'pk0', which depends on the repetition"},
        NearMiss{"OtherQueryHeads", "q0",
                 "value q0 f32[batch,heads,seq,8]\nq0 = Identity(hidden_q)\n"
                 "input hidden_q f32[batch,heads,seq,8]",
                 "heads: is not known to have 4 query heads and as many of its key and value"},
        NearMiss{"TheValueIsNot", "v", "v = Identity(past_v)",
                 "key-is-expanded: 'past_v' is not repeated, its other half is; needs both"}),
    [](const auto& test) { return std::string(test.param.name); });

// Why the layer stays, when `value` is a part of `joined`.
std::string ReasonWhen(const std::string& value, const std::string& joined) {
  Graph graph = GraphOf(TorchLayersWith(value, value + " = Slice(" + joined +
                                                   ", nought1, seen, two)\nconst nought1 i64[1] = 0\n"
                                                   "seen = Identity(S1)"));
  return RewriteIn(graph, To(Target::kKvshare)).CodedDeclineOf("own-attention");
}

TEST(OwnAttention, LeavesACacheWhoseQueryWaitsForIt) {
  EXPECT_EQ(ReasonWhen("q0", "k"), "key-not-of-this-step: 'q0' depends on 'present_k', which it would make");
}

TEST(OwnAttention, LeavesACacheWhoseNewRowsWaitForIt) {
  EXPECT_EQ(ReasonWhen("v0", "present_k"), "key-not-of-this-step: 'v0' depends on 'present_k', which it would make");
}

// Layer 0 takes the heads as they are.
constexpr const char* kGrouped = "out0 = Attention(q0, present_k, present_v, mask) {scale=0.5, is_causal=0}";

// Rows of the source that end in zeros: its lengths end before the columns do.
TEST(SharedAttention, SaysWhereItsQueriesStandNow) {
  const auto says = testing::Contains(testing::HasSubstr("stand behind the kept tokens of 'attention_mask'"));
  for (const Target target : {Target::kKvshare, Target::kOnnx25}) {
    Graph graph = GraphOf(kTorchLayers);
    RewriteOptions own = To(Target::kKvshare);
    own.skip = {"shared-attention"};
    ASSERT_TRUE(RewriteGraph(graph, own).ok());
    EXPECT_THAT(RewriteIn(graph, To(target)).report.notes, says);
  }
  EXPECT_THAT(RewriteText(kTorchLayers, To(Target::kKvshare)).report.notes, testing::Not(says));
}

struct OddOwn {
  const char* name;
  std::string text;
  Target target;
  const char* rule;
  const char* reason;
};

class OwnLayer : public testing::TestWithParam<OddOwn> {};

TEST_P(OwnLayer, IsLeftWithAReason) {
  Graph graph = GraphOf(GetParam().text);
  EXPECT_EQ(RewriteIn(graph, To(GetParam().target)).CodedDeclineOf(GetParam().rule), GetParam().reason);
}

INSTANTIATE_TEST_SUITE_P(
    NearMisses, OwnLayer,
    testing::Values(
        OddOwn{"HeadsThatStayRepeated",
               TorchLayersWith("wide_shape", "wide_shape = Concat(T1, two, two, T1, eight) {axis=0}"), Target::kKvshare,
               "own-attention", "key-is-expanded: the graph repeats each key-value head 2 times; needs it as it is"},
        OddOwn{"KeyAndValueOfOneCache",
               TorchLayersWith("out0", "out0 = Attention(q0, k, k, mask) {scale=0.5, is_causal=0}"), Target::kKvshare,
               "own-attention", "key-value-differ: takes 'present_k' as key and as value; needs a cache of each"},
        OddOwn{"ACacheOfAnotherLayerToo",
               TorchLayersWith("out1",
                               "input other_past f32[batch,2,past,8]\nother = Concat(other_past, k0) {axis=-2}\n"
                               "o5 = Unsqueeze(other, two)\now = Expand(o5, wide_shape)\n"
                               "o = Reshape(ow, flat_shape) {allowzero=1}\n"
                               "out1 = Attention(q1, o, v, mask) {scale=0.5, is_causal=0}"),
               Target::kKvshare, "own-attention",
               "key-value-differ: takes 'present_v', which layer 1 takes beside another cache"},
        OddOwn{"HeadSizeNotKnown",
               WithText(WithText(TorchLayersWith("out0", kGrouped), ",8]", ",d]"), "Concat(B1, two, two, T1, eight)",
                        "Concat(B1, two, two, T1, last)"),
               Target::kKvshare, "own-attention",
               "head-size: its head size is not known, which a query of rank 3 needs"},
        OddOwn{"QueryOfRank3",
               TorchLayersWith("out0",
                               "input q3 f32[batch,seq,32]\nout0 = Attention(q3, present_k, present_v, mask) "
                               "{scale=0.5, q_num_heads=4, kv_num_heads=2}"),
               Target::kKvshare, "own-attention", "heads: joins keys of rank 4 for a query of rank 3"},
        OddOwn{
            "OtherNewValues",
            WithText(TorchLayersWith("out0", kGrouped), "value v0 f32[batch,2,seq,8]", "value v0 f32[batch,2,more,8]"),
            Target::kKvshare, "own-attention",
            "key-not-of-this-step: 'v0' is not known to have as many tokens as the query"},
        OddOwn{"OtherQueries", WithText(kTorchLayers, "value q0 f32[batch,4,seq,8]", "value q0 f32[batch,4,more,8]"),
               Target::kKvshareAttention, "own-key-mask",
               "mask-queries: its mask is made for seq queries; its query has more"},
        OddOwn{"MoreMaskThanKeys",
               TorchLayersWith("out0", "out0, pk0, pv0 = Attention(q0, k0, v0, mask, past_k, past_v) {scale=0.5}"),
               Target::kKvshareAttention, "own-key-mask",
               "mask-keys: its mask is made for past + seq keys; 'attention_mask' has total"}),
    [](const auto& test) { return std::string(test.param.name); });

// kTorchLayers with layer 0 in both branches of an If.
onnx::ModelProto WithLayerInBranches() {
  onnx::ModelProto model = *ParseTextGraph(TorchLayersWith("out0", kGrouped) + "input condition bool[]\n");
  auto& main = *model.mutable_graph();
  for (auto& node : *main.mutable_node()) {
    if (node.output(0) != "out0") continue;
    onnx::GraphProto body;
    *body.add_node() = node;
    body.add_output()->set_name("out0_of_body");
    auto& identity = *body.add_node();
    identity.set_op_type("Identity");
    identity.add_input("out0");
    identity.add_output("out0_of_body");
    node.Clear();
    node.set_op_type("If");
    node.add_input("condition");
    node.add_output("chosen");
    for (const char* name : {"then_branch", "else_branch"}) {
      auto& attribute = *node.add_attribute();
      attribute.set_name(name);
      attribute.set_type(onnx::AttributeProto::GRAPH);
      *attribute.mutable_g() = body;
    }
  }
  for (auto& node : *main.mutable_node())
    for (auto& input : *node.mutable_input())
      if (input == "out0") input = "chosen";
  return model;
}

TEST(OwnAttention, LeavesCachesJoinedAroundItsBody) {
  auto graph = Graph::Make(WithLayerInBranches(), ".");
  ASSERT_TRUE(graph.ok()) << graph.status().message();
  EXPECT_EQ(RewriteIn(*graph, To(Target::kKvshare)).CodedDeclineOf("own-attention"),
            "key-is-made-outside: takes 'present_k', which is joined in a graph around it");
}

TEST(OwnKeyMask, LeavesAMaskMadeForOtherKeys) {
  std::string text(kTorchLayers);
  text.replace(text.find("input past_v f32[batch,2,past,8]"), 32, "input past_v f32[batch,2,other,8]");
  text.replace(text.find("P1 = Shape(past_k)"), 18, "P1 = Shape(past_v)");
  Graph graph = GraphOf(text);
  const Rewritten result = RewriteIn(graph, To(Target::kKvshareAttention));
  EXPECT_EQ(result.CodedDeclineOf("own-key-mask"),
            "mask-keys: its mask is made for other + seq keys; it has past + seq");
}

TEST(OwnKeyMask, LeavesATriangleThatCountsFromTheFirstKey) {
  Graph graph = GraphOf(TorchLayersWith("out0", "out0 = Attention(q0, k, v, mask) {scale=0.5, is_causal=1}"));
  const Rewritten result = RewriteIn(graph, To(Target::kKvshareAttention));
  EXPECT_EQ(result.CodedDeclineOf("own-key-mask"),
            "not-causal: is_causal without a past counts from the first key, its mask from the last");
}

}  // namespace
}  // namespace kvshare::graph
