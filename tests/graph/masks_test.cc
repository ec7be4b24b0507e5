#include "graph/masks.h"

#include <fmt/format.h>
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

// kTwoLayers with `from` read as `to` by every node.
std::string Reread(const std::string& from, const std::string& to, const std::string& line) {
  std::string text(kTwoLayers);
  const size_t nodes = text.find("q0 = ");
  for (size_t at = text.find(from, nodes); at != std::string::npos; at = text.find(from, at + to.size()))
    if (text[at + from.size()] == ',' || text[at + from.size()] == ')') text.replace(at, from.size(), to);
  return text + line;
}

struct SameMask {
  const char* name;
  std::string text;
};

class ReadSameMask : public testing::TestWithParam<SameMask> {};

TEST_P(ReadSameMask, GivesTheMeaningOfThePlainOne) {
  const auto mask = ReadMask(GraphOf(GetParam().text), "bias");
  ASSERT_TRUE(mask.ok()) << mask.status().message();
  EXPECT_EQ(mask->window, 4);
  EXPECT_TRUE(mask->causal);
  EXPECT_TRUE(mask->padding);
  EXPECT_EQ(mask->rank, 4);
  EXPECT_EQ(mask->key_mask, "attention_mask");
  EXPECT_EQ(mask->query, "input_ids");
}

std::string WithInt32Mask() {
  std::string text = Reread("attention_mask", "mask64", "mask64 = Cast(attention_mask) {to=7}\n");
  return text.replace(text.find("attention_mask i64"), 18, "attention_mask i32");
}

std::string WithIdentities() {
  std::string text(kTwoLayers);
  for (const char* value : {"count", "kv", "new", "q", "causal", "distance", "near", "visible", "wide", "kept", "both",
                            "bias3", "S", "T", "begin", "window", "zero"}) {
    const std::string name = value;
    std::string reread;
    size_t begin = 0;
    while (begin < text.size()) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      std::string line = text.substr(begin, end - begin);
      const size_t open = line.find('(');
      for (size_t at = line.find(name, open); open != std::string::npos && at != std::string::npos;
           at = line.find(name, at + 1)) {
        const char before = line[at - 1];
        const char after = line[at + name.size()];
        if ((before == '(' || before == ' ') && (after == ',' || after == ')')) line.insert(at + name.size(), "_id");
      }
      reread += line + "\n";
      begin = end + 1;
    }
    text = reread + name + "_id = Identity(" + name + ")\n";
  }
  return text;
}

INSTANTIATE_TEST_SUITE_P(
    Surfaces, ReadSameMask,
    testing::Values(
        SameMask{"Int32CastAtOnce", WithInt32Mask()}, SameMask{"IdentitiesBetween", WithIdentities()},
        SameMask{"ComputedWindow", TwoLayersWith("near",
                                                 "const three i64[] = 3\nconst once i64[] = 1\nsum = Add(three, once)\n"
                                                 "near = Less(distance, sum)")},
        SameMask{"ExtentsByGather", TwoLayersWith("T",
                                                  "mask_shape = Shape(attention_mask) {start=0}\nconst at i64[] = 1\n"
                                                  "T0 = Gather(mask_shape, at)\nT = Unsqueeze(T0, zeroth)\n"
                                                  "const zeroth i64[1] = 0")},
        SameMask{"CastBias", TwoLayersWith("bias3", "low = Cast(hidden) {to=1}\nbias3 = Where(both, zero, low)")},
        SameMask{"EndOfEverything",
                 TwoLayersWith("new", "const end i64[1] = 9223372036854775807\nnew = Slice(count, begin, end, one)")},
        SameMask{"DefaultsWritten", TwoLayersWith("count",
                                                  "count = CumSum(attention_mask, one) {exclusive=0, "
                                                  "reverse=0}")}),
    [](const auto& test) { return std::string(test.param.name); });

// What an optimizer leaves where all shapes are fixed: T - S is a constant.
TEST(ReadMask, AFoldedStartOfTheSliceTellsTheNumberOfQueries) {
  std::string text = TwoLayersWith("begin", "const begin i64[1] = 5");
  text.replace(text.find("attention_mask i64[B,T]"), 23, "attention_mask i64[2,8]");
  const auto mask = ReadMask(GraphOf(text), "bias");
  ASSERT_TRUE(mask.ok()) << mask.status().message();
  EXPECT_EQ(mask->query, "");
  EXPECT_EQ(mask->queries, 3);
  const auto last = ReadMask(GraphOf(TwoLayersWith("begin", "const begin i64[1] = -1")), "bias");
  ASSERT_TRUE(last.ok()) << last.status().message();
  EXPECT_EQ(last->queries, 1);
}

// A drafter takes the columns of its target's attention_mask that the cache has keys for.
std::string FirstColumns(const std::string& slice) {
  std::string text(kTwoLayers);
  const size_t masks = text.find("count = ");
  for (size_t at = text.find("attention_mask", masks); at != std::string::npos;
       at = text.find("attention_mask", at + 5))
    text.replace(at, 14, "first");
  text.insert(masks, "K = Shape(past_k) {start=2, end=3}\nconst nought i64[1] = 0\n" + slice + "\n");
  return text;
}

TEST(ReadMask, OfTheFirstColumnsIsRead) {
  for (const char* slice :
       {"first = Slice(attention_mask, nought, K, one)", "first = Slice(attention_mask, nought, K, one, one)"}) {
    const auto mask = ReadMask(GraphOf(FirstColumns(slice)), "bias");
    ASSERT_TRUE(mask.ok()) << mask.status().message();
    EXPECT_EQ(mask->key_mask, "first");
    EXPECT_EQ(mask->window, 4);
    EXPECT_TRUE(mask->causal && mask->padding);
  }
}

TEST(ReadMask, OfOtherColumnsIsNot) {
  for (const char* slice :
       {"first = Slice(attention_mask, one, K, one)", "first = Slice(attention_mask, nought, K, nought)",
        "first = Slice(attention_mask, nought, K, one, two)"})
    EXPECT_EQ(ReadMask(GraphOf(FirstColumns(slice)), "bias").status().message(),
              "mask: Slice 'first' makes the padding; needs a graph input there");
}

class ReadOddMask : public testing::TestWithParam<NearMiss> {};

TEST_P(ReadOddMask, SaysWhatIsNotUnderstood) {
  const NearMiss& odd = GetParam();
  EXPECT_EQ(ReadMask(GraphOf(TwoLayersWith(odd.output, odd.line)), "bias").status().message(), odd.reason);
}

INSTANTIATE_TEST_SUITE_P(
    Forms, ReadOddMask,
    testing::Values(
        NearMiss{"ComputedPadding", "wide", "other = Neg(attention_mask)\nwide = Unsqueeze(other, one)",
                 "mask: Neg 'other' makes the padding; needs a graph input there"},
        NearMiss{"ConstantPadding", "wide", "const ones2 i64[1,4] = 1\nwide = Unsqueeze(ones2, one)",
                 "mask: 'ones2' is a constant; needs a graph input there"},
        NearMiss{"PositionsOfAnInput", "count", "input count i64[B,T]",
                 "mask: positions come from 'count'; need CumSum of a mask"},
        NearMiss{"PositionsOfAnotherNode", "count", "count = Neg(attention_mask)",
                 "mask: Neg 'count' gives the positions; needs CumSum of a mask"},
        NearMiss{"OtherAxis", "count", "const nought i64[1] = 0\ncount = CumSum(attention_mask, nought)",
                 "mask: CumSum 'count' does not run along axis 1"},
        NearMiss{"NotUnsqueezed", "causal", "causal = GreaterOrEqual(new, kv)",
                 "mask: GreaterOrEqual 'causal' does not compare positions of queries [B,S,1] with positions of keys "
                 "[B,1,T]"},
        NearMiss{"TwoLengths", "near",
                 "S2 = Shape(position_ids) {start=1, end=2}\nbegin2 = Sub(T, S2)\nnew2 = Slice(count, begin2, T, one)\n"
                 "q2 = Unsqueeze(new2, two)\ndistance2 = Sub(q2, kv)\nnear = Less(distance2, window)",
                 "mask: And 'visible' joins query lengths of 'input_ids' and of 'position_ids'"},
        NearMiss{"TwoNumbersOfQueries", "visible",
                 "const last1 i64[1] = -1\nconst last2 i64[1] = -2\nnew1 = Slice(count, last1, T, one)\n"
                 "q1 = Unsqueeze(new1, two)\ncausal1 = GreaterOrEqual(q1, kv)\nnew2 = Slice(count, last2, T, one)\n"
                 "q2 = Unsqueeze(new2, two)\ndistance2 = Sub(q2, kv)\nnear2 = Less(distance2, window)\n"
                 "visible = And(causal1, near2)",
                 "mask: And 'visible' joins query lengths of 1 and of 2"},
        NearMiss{"TwoWindows", "visible", "visible = And(near, near)", "mask: And 'visible' joins two windows"},
        NearMiss{"FloatPadding", "wide",
                 "input soft f32[B,T]\nsoft64 = Cast(soft) {to=7}\nwide = Unsqueeze(soft64, one)",
                 "mask: 'soft' has element type 1; needs int64, int32 or bool"},
        NearMiss{"StartWithoutTheTotal", "begin", "const begin i64[1] = 5",
                 "mask: Slice 'new' does not take the last S columns of the positions"},
        NearMiss{"NoDifference", "near", "near = Less(q, window)",
                 "mask: Less 'near' does not compare positions of queries [B,S,1] with positions of keys [B,1,T]"},
        NearMiss{"TwiceTheKeys", "near", "farther = Sub(distance, kv)\nnear = Less(farther, window)",
                 "mask: Less 'near' does not compare positions of queries [B,S,1] with positions of keys [B,1,T]"},
        NearMiss{"ANumberForEachKey", "near", "const windows i64[2] = 4\nnear = Less(distance, windows)",
                 "mask: Less 'near' does not compare positions of queries [B,S,1] with positions of keys [B,1,T]"},
        NearMiss{"SeesTheNextKey", "causal", "const minus1 i64[] = -1\ncausal = GreaterOrEqual(distance, minus1)",
                 "mask: GreaterOrEqual 'causal' lets a query see up to 1 keys after its own"},
        NearMiss{"EmptyWindow", "near", "const none i64[] = 0\nnear = Less(distance, none)",
                 "mask: Less 'near' has a window of 0; needs at least 1"}),
    [](const auto& test) { return std::string(test.param.name); });

// A line of kTwoLayers and others that mean the same, or another window.
struct SameCounts {
  const char* name;
  const char* output;
  const char* line;
  int64_t window;
};

class ReadSameCounts : public testing::TestWithParam<SameCounts> {};

TEST_P(ReadSameCounts, GivesTheSameMeaning) {
  const auto mask = ReadMask(GraphOf(TwoLayersWith(GetParam().output, GetParam().line)), "bias");
  ASSERT_TRUE(mask.ok()) << mask.status().message();
  EXPECT_EQ(mask->window, GetParam().window);
  EXPECT_TRUE(mask->causal);
  EXPECT_EQ(mask->key_mask, "attention_mask");
  EXPECT_EQ(mask->query, "input_ids");
}

INSTANTIATE_TEST_SUITE_P(
    Surfaces, ReadSameCounts,
    testing::Values(SameCounts{"CausalTurned", "causal", "causal = LessOrEqual(kv, q)", 4},
                    SameCounts{"CausalByDistance", "causal",
                               "const nought i64[] = 0\ncausal = GreaterOrEqual(distance, nought)", 4},
                    SameCounts{"CausalByDistanceTurned", "causal",
                               "const minus1 i64[] = -1\ncausal = Less(minus1, distance)", 4},
                    SameCounts{"CausalByTheNext", "causal", "next = Add(q, one)\ncausal = Greater(next, kv)", 4},
                    SameCounts{"WindowWithItsLast", "near", "near = LessOrEqual(distance, window)", 5},
                    SameCounts{"WindowTurned", "near", "near = Greater(window, distance)", 4},
                    SameCounts{"WindowByItsBegin", "near", "begins = Sub(q, window)\nnear = Greater(kv, begins)", 4},
                    SameCounts{"WindowOfNegativeDistances", "near",
                               "const minus4 i64[] = -4\nback = Sub(kv, q)\nnear = Less(minus4, back)", 4}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(ReadMask, QueriesAreCountedAlongTheirOwnAxisOfAnAttentionsQuery) {
  const std::string text = TwoLayersWith("S",
                                         "input q4 f32[B,4,S,8]\nout4 = Attention(q4, present_k, present_v)\n"
                                         "S = Shape(q4) {start=2, end=3}");
  const auto mask = ReadMask(GraphOf(text), "bias");
  ASSERT_TRUE(mask.ok()) << mask.status().message();
  EXPECT_EQ(mask->query, "q4");
  const std::string other = TwoLayersWith("S", "input q4 f32[B,4,S,8]\nS = Shape(q4) {start=2, end=3}");
  EXPECT_EQ(ReadMask(GraphOf(other), "bias").status().message(),
            "mask: Slice 'new' does not take the last S columns of the positions");
}

TEST(ReadMask, AShapeOfNothingIsNotRead) {
  EXPECT_EQ(ReadMask(GraphOf(TwoLayersWith("S", "S = Shape() {start=1, end=2}")), "bias").status().message(),
            "mask: Slice 'new' does not take the last S columns of the positions");
}

// Each level reads the one below twice: 2^40 conditions, were they all read.
TEST(ReadMask, ConditionsThatNestWithoutEndAreNotRead) {
  std::string levels = "a0 = And(kept, kept)\n";
  for (int i = 0; i < 40; ++i) levels += fmt::format("a{} = And(a{}, a{})\n", i + 1, i, i);
  const auto mask = ReadMask(GraphOf(TwoLayersWith("both", levels + "both = And(a40, visible)")), "bias");
  EXPECT_THAT(mask.status().message(), testing::HasSubstr("is one of more than 64 conditions"));
}

// As many levels as would overflow the stack, were each a call.
TEST(ReadMask, AChainOf100000ConditionsIsNotRead) {
  onnx::ModelProto model = *ParseTextGraph(TwoLayersWith("both", "a0 = And(kept, near)\nboth = And(a100000, kept)"));
  for (int i = 0; i < 100'000; ++i) {
    Node& node = *model.mutable_graph()->add_node();
    node.set_op_type("And");
    node.add_input(fmt::format("a{}", i));
    node.add_input("kept");
    node.add_output(fmt::format("a{}", i + 1));
  }
  const auto graph = Graph::Make(std::move(model), ".");
  ASSERT_TRUE(graph.ok());
  EXPECT_THAT(ReadMask(*graph, "bias").status().message(), testing::HasSubstr("is one of more than 64 conditions"));
}

TEST(ReadMask, AMaskFromOutsideHasNoKnownMeaning) {
  EXPECT_EQ(ReadMask(GraphOf(kTwoLayers), "attention_mask").status().message(),
            "mask: 'attention_mask' is given from outside; its meaning is not known");
}

TEST(ReadMask, AConstantAmongConditionsHasNoKnownMeaning) {
  EXPECT_EQ(ReadMask(GraphOf(TwoLayersWith("both", "both = And(kept, one)")), "both").status().message(),
            "mask: 'one' is a constant among conditions; its meaning is not known");
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
