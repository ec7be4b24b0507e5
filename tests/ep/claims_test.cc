#include "ep/claims.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <ostream>
#include <string>
#include <utility>

#include "tests/graph/torch_layers.h"
#include "tests/graph/two_layers.h"

namespace kvshare::ep {
namespace {

using graph::GraphOf;
using graph::kTwoLayers;
using graph::TwoLayersWith;
using testing::ElementsAre;
using testing::IsEmpty;

Claims Of(std::string_view text, CausalAlignment alignment = CausalAlignment::kAuto) {
  return FindClaims(GraphOf(text), {.alignment = alignment, .masks = false, .aliases = false});
}

TEST(Alignment, AutoReadsABorrowersTriangleFromTheLastKey) {
  const Claims claims = Of(kTwoLayers);
  EXPECT_TRUE(claims.plans.at("out1").lower_right);
  EXPECT_THAT(claims.repaired, ElementsAre("Attention 'out1'"));
}

TEST(Alignment, SpecReadsItFromTheFirstKey) {
  const Claims claims = Of(kTwoLayers, CausalAlignment::kSpec);
  EXPECT_FALSE(claims.plans.at("out1").lower_right);
  EXPECT_THAT(claims.repaired, IsEmpty());
}

TEST(Alignment, LowerRightIsAskedForAndNoRepair) {
  const Claims claims = Of(kTwoLayers, CausalAlignment::kLowerRight);
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

Claims Fused(const std::string& text, CausalAlignment alignment = CausalAlignment::kAuto) {
  return FindClaims(GraphOf(text), {.alignment = alignment});
}

TEST(Masks, AMaskIsMadeByOneGroupAndReadAsAKeyMask) {
  const Claims claims = Fused(std::string(kTwoLayers));
  EXPECT_THAT(claims.reasons, IsEmpty());
  EXPECT_EQ(claims.masks, (std::map<std::string, MaskOutput>{{"bias", {"attention_mask", 4, 1}}}));
  // ReduceSum and Gather of the mask, which make lengths for layer 0, are none of it.
  EXPECT_THAT(claims.group, ElementsAre("count", "kv", "S", "T", "begin", "new", "q", "causal", "distance", "near",
                                        "visible", "wide", "kept", "both", "bias3", "bias"));
  const Plan& plan = claims.plans.at("out1");
  EXPECT_EQ(plan.key_mask, "bias");
  EXPECT_EQ(plan.window, 4);
  EXPECT_TRUE(plan.lower_right);
  EXPECT_EQ(claims.plans.at("out0"), Plan{});
}

TEST(Masks, ANodeThatOthersReadTooStaysOutOfTheGroup) {
  const Claims claims = Fused(std::string(kTwoLayers) + "again = Identity(visible)\noutput again bool[B,S,T]\n");
  EXPECT_EQ(claims.plans.at("out1").key_mask, "bias");
  EXPECT_THAT(claims.group, ElementsAre("wide", "kept", "both", "bias3", "bias"));
}

// A third layer, which sees all keys, with a mask that shares nodes with layer 1's.
const char* const kFullLayer =
    "both2 = And(kept, causal)\nbias32 = Where(both2, zero, hidden)\nbias2 = Unsqueeze(bias32, one)\n"
    "out2 = Attention(out1, k1, v1, bias2) {q_num_heads=4, kv_num_heads=1, scale=1.0}\noutput out2 f32[B,S,32]\n";
// Layer 0 without a window, so that a layer without one may borrow from it.
std::string ThreeLayers() {
  return TwoLayersWith("out0",
                       "out0, present_k, present_v = com.microsoft.GroupQueryAttention(q0, k0, k0, past_k, past_v, "
                       "seqlens, total, cos_table, sin_table) {num_heads=4, kv_num_heads=1, scale=1.0, do_rotary=1}",
                       TwoLayersWith("both", "both = And(kept, causal)")) +
         kFullLayer;
}

TEST(Masks, TwoMasksThatShareNodesAreOfOneGroup) {
  const Claims claims = Fused(ThreeLayers());
  EXPECT_EQ(claims.plans.at("out1").key_mask, "bias");
  EXPECT_EQ(claims.plans.at("out2").key_mask, "bias2");
  EXPECT_THAT(claims.masks, testing::SizeIs(2));
  EXPECT_THAT(claims.reasons, IsEmpty());
}

TEST(Masks, AMaskThatSharesItsPaddingWithOneThatStaysStaysToo) {
  const Claims claims = Fused(ThreeLayers() + "again = Identity(bias2)\noutput again f32[B,1,S,T]\n");
  EXPECT_THAT(claims.masks, IsEmpty());
  EXPECT_THAT(claims.reasons, testing::UnorderedElementsAre(
                                  "Attention 'out1': keeps its mask: 'attention_mask' reaches it through nodes "
                                  "with other readers, or is not int64, int32 or bool",
                                  "Attention 'out2': keeps its mask: is still read by Identity 'again'"));
}

TEST(Masks, AMaskWithAPaddingOfItsOwnGoesWhereAnotherStays) {
  const std::string own = TwoLayersWith("both2",
                                        "wide2 = Unsqueeze(attention_mask, one)\nkept2 = Cast(wide2) {to=9}\n"
                                        "both2 = And(kept2, causal)",
                                        ThreeLayers());
  const Claims claims = Fused(own + "again = Identity(bias2)\noutput again f32[B,1,S,T]\n");
  EXPECT_EQ(claims.plans.at("out1").key_mask, "bias");
  EXPECT_EQ(claims.plans.at("out2").key_mask, "");
  EXPECT_THAT(claims.masks, testing::SizeIs(1));
}

// A layer whose kernel does not take the plan: what it reads must mean what ONNX says.
TEST(Refused, ALayerKeepsItsMaskAndItsCopies) {
  const Claims claims = FindClaims(GraphOf(kTwoLayers), {.refused = {{"out1", "no kernel"}}});
  EXPECT_THAT(claims.masks, IsEmpty());
  EXPECT_THAT(claims.group, IsEmpty());
  EXPECT_THAT(claims.aliases, IsEmpty());
  EXPECT_THAT(claims.Readers(), IsEmpty());
  EXPECT_THAT(claims.reasons,
              testing::UnorderedElementsAre("Attention 'out1': keeps its mask: no kernel",
                                            "Attention 'out1': its keys and values are copied: no kernel"));
}

TEST(Refused, ALayerKeepsWhatItSharesWithOthersToo) {
  const Claims claims = FindClaims(GraphOf(ThreeLayers()), {.refused = {{"out2", "no kernel"}}});
  EXPECT_THAT(claims.masks, IsEmpty());
  EXPECT_THAT(claims.aliases, IsEmpty());
  EXPECT_THAT(claims.reasons, testing::Contains("Attention 'out1': its keys and values are copied: Reshape 'k1' is "
                                                "still read by Attention 'out2'"));
}

TEST(Readers, AreTheNodesWhoseInputsHoldOtherContents) {
  EXPECT_THAT(FindClaims(GraphOf(ThreeLayers()), {}).Readers(), ElementsAre("out1", "out2"));
}

struct Kept {
  const char* name;
  std::string text;
  const char* reason;
  CausalAlignment alignment = CausalAlignment::kAuto;
};

void PrintTo(const Kept& kept, std::ostream* out) { *out << kept.name; }

class KeptMask : public testing::TestWithParam<Kept> {};

TEST_P(KeptMask, HasItsReason) {
  const Claims claims = Fused(GetParam().text, GetParam().alignment);
  EXPECT_EQ(claims.plans.at("out1").key_mask, "");
  EXPECT_THAT(claims.masks, IsEmpty());
  EXPECT_THAT(claims.group, IsEmpty());
  EXPECT_THAT(claims.reasons, testing::Contains(std::string("Attention 'out1': keeps its mask: ") + GetParam().reason));
}

INSTANTIATE_TEST_SUITE_P(
    Guards, KeptMask,
    testing::Values(
        Kept{"ReadElsewhere", std::string(kTwoLayers) + "again = Identity(bias)\noutput again f32[B,1,S,T]\n",
             "is still read by Identity 'again'"},
        Kept{"AnOutput", std::string(kTwoLayers) + "output bias f32[B,1,S,T]\n",
             "is still read by graph output 'bias'"},
        Kept{"NotUnderstood", TwoLayersWith("near", "near = Equal(distance, window)"),
             "mask: Equal 'near' is not one of And, comparisons of positions, Expand and padding as exporters write "
             "them"},
        Kept{"MadeFromAttention", TwoLayersWith("S", "S = Shape(out0) {start=1, end=2}"),
             "its mask depends on an attention layer's output"},
        Kept{"KeysThatAreNoPresent",
             TwoLayersWith("out1",
                           "out1 = Attention(rotated, k0, k0, bias) {q_num_heads=4, kv_num_heads=1, is_causal=1}"),
             "takes keys made outside of it with a mask that numbers them by the ones in 'attention_mask'; needs a "
             "past"},
        Kept{"KeysOfAnInput", TwoLayersWith("kt", "kt = Transpose(past_k) {perm=[0,2,1,3]}"),
             "borrows from an input of the graph, not from a layer of this model"},
        Kept{"AnotherInputOfALayer",
             ThreeLayers() + "out3 = Attention(bias, k1, v1, bias2) {q_num_heads=4, kv_num_heads=1, scale=1.0}\n"
                             "output out3 f32[B,1,S,8]\n",
             "is still read by Attention 'out3' as another input"},
        Kept{
            "FirstColumns",
            TwoLayersWith(
                "count",
                "const nought i64[1] = 0\ncut = Slice(attention_mask, nought, many, one)\ncount = CumSum(cut, one)",
                TwoLayersWith("wide", "wide = Unsqueeze(cut, one)",
                              TwoLayersWith("T", "T = Shape(cut) {start=1, end=2}",
                                            TwoLayersWith("window", "const window i64[] = 4\nconst many i64[1] = 9")))),
            "'cut' is the first columns of a mask, not all of it"},
        Kept{"WindowAttribute",
             TwoLayersWith("out1",
                           "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=1, "
                           "left_window_size=2}"),
             "has left_window_size, which its kernel reads beside the mask"},
        Kept{"TopLeftBySpec", std::string(kTwoLayers), "is_causal without a past counts from the first key",
             CausalAlignment::kSpec},
        Kept{"BatchAgainstHeadsBySpec",
             TwoLayersWith("out1", "out1 = Attention(rotated, k1, v1, bias3) {q_num_heads=4, kv_num_heads=1}"),
             "its mask is [B, S, T], whose B ONNX lines up with the heads", CausalAlignment::kSpec}),
    [](const auto& test) { return test.param.name; });

TEST(Aliases, TheCopiesOfABorrowedCacheAreItsMemory) {
  const Claims claims = Fused(std::string(kTwoLayers));
  EXPECT_THAT(claims.aliases, testing::UnorderedElementsAre("kt", "k1", "vt", "v1"));
  const Plan& plan = claims.plans.at("out1");
  EXPECT_THAT(plan.unfolded, ElementsAre("k1", "v1"));
  EXPECT_EQ(plan.kv_heads, 1);
}

TEST(Aliases, CopiesThatBorrowersShareAreAliasesForAll) {
  const Claims claims = Fused(ThreeLayers());
  EXPECT_THAT(claims.plans.at("out1").unfolded, ElementsAre("k1", "v1"));
  EXPECT_THAT(claims.plans.at("out2").unfolded, ElementsAre("k1", "v1"));
}

// As PyTorch's exporter writes them: own layers too.
TEST(Aliases, RepeatedHeadsAreThoseThatTheCacheHas) {
  const Claims claims = Fused(std::string(graph::kTorchLayers));
  EXPECT_THAT(claims.reasons, IsEmpty());
  EXPECT_THAT(claims.aliases, testing::UnorderedElementsAre("k5", "kw", "k", "v5", "vw", "v"));
  for (const char* layer : {"out0", "out1"}) {
    EXPECT_THAT(claims.plans.at(layer).unfolded, ElementsAre("", ""));
    EXPECT_EQ(claims.plans.at(layer).kv_heads, 2);
  }
}

TEST(Masks, OfColumnsHidePaddingAlone) {
  const Claims claims = Fused(std::string(graph::kTorchLayers));
  EXPECT_EQ(claims.masks, (std::map<std::string, MaskOutput>{{"mask", {"attention_mask", 4, 1}}}));
  for (const char* layer : {"out0", "out1"}) {
    const Plan& plan = claims.plans.at(layer);
    EXPECT_EQ(plan.key_mask, "mask");
    EXPECT_TRUE(plan.columns);
    EXPECT_TRUE(plan.lower_right);
    EXPECT_EQ(plan.window, 4);
  }
}

class KeptRepetition : public testing::TestWithParam<Kept> {};

TEST_P(KeptRepetition, HasItsReason) {
  const Claims claims = Fused(GetParam().text);
  EXPECT_THAT(claims.aliases, IsEmpty());
  EXPECT_EQ(claims.plans.at("out0").kv_heads, 0);
  EXPECT_THAT(claims.reasons,
              testing::Contains(std::string("Attention 'out0': its keys and values are copied: ") + GetParam().reason));
}

INSTANTIATE_TEST_SUITE_P(
    Guards, KeptRepetition,
    testing::Values(Kept{"ForeignReaderOfTheExpand",
                         std::string(graph::kTorchLayers) +
                             "again = Identity(kw)\noutput again f32[batch,2,2,past + seq,8]\n",
                         "Expand 'kw' is still read by Identity 'again'"},
                    Kept{"AnOutput", std::string(graph::kTorchLayers) + "output k f32[batch,4,past + seq,8]\n",
                         "Reshape 'k' is still read by graph output 'k'"},
                    Kept{"MoreBatches",
                         graph::TorchLayersWith("wide_shape", "wide_shape = Concat(T1, two, two, T1, eight) {axis=0}"),
                         "Expand 'kw' makes an extent batch of 'present_k' into past + seq; needs it as it is"},
                    Kept{"KeysAndChannelsInterchanged",
                         graph::TorchLayersWith("flat_shape", "flat_shape = Concat(B1, four, eight, T1) {axis=0}"),
                         "Reshape 'k' is not known to give [B, 4, T, D]"},
                    Kept{"TheValueIsNot", graph::TorchLayersWith("v", "v = Identity(past_v)"),
                         "'past_v' is not repeated, its other half is; needs both"}),
    [](const auto& test) { return test.param.name; });

class KeptColumns : public testing::TestWithParam<Kept> {};

TEST_P(KeptColumns, HaveTheirReason) {
  const Claims claims = Fused(GetParam().text);
  EXPECT_EQ(claims.plans.at("out0").key_mask, "");
  EXPECT_FALSE(claims.plans.at("out0").columns);
  EXPECT_THAT(claims.reasons, testing::Contains(std::string("Attention 'out0': keeps its mask: ") + GetParam().reason));
}

INSTANTIATE_TEST_SUITE_P(
    Guards, KeptColumns,
    testing::Values(
        Kept{"ReadElsewhere",
             std::string(graph::kTorchLayers) + "again = Identity(mask)\noutput again bool[batch,1,seq,past + seq]\n",
             "is still read by Identity 'again'"},
        Kept{"WindowAttribute",
             graph::TorchLayersWith("out0", "out0 = Attention(q0, k, v, mask) {scale=0.5, left_window_size=3}"),
             "has left_window_size, which its kernel reads beside the mask"},
        Kept{"TopLeft", graph::TorchLayersWith("out0", "out0 = Attention(q0, k, v, mask) {scale=0.5, is_causal=1}"),
             "is_causal without a past counts from the first key, its mask from the last"}),
    [](const auto& test) { return test.param.name; });

// kTorchLayers with the mask of other exporters, which numbers keys by the ones in attention_mask.
std::string TorchLayersWithACountedMask() {
  return graph::TorchLayersWith("mask",
                                "count = CumSum(attention_mask, one)\nkvc = Unsqueeze(count, one)\n"
                                "Sm = Shape(hidden) {start=1, end=2}\nTm = Shape(attention_mask) {start=1, end=2}\n"
                                "first = Sub(Tm, Sm)\nnew = Slice(count, first, Tm, one)\nqc = Unsqueeze(new, two)\n"
                                "seen = GreaterOrEqual(qc, kvc)\nwidem = Unsqueeze(attention_mask, one)\n"
                                "keptm = Cast(widem) {to=9}\nbothm = And(keptm, seen)\nmask = Unsqueeze(bothm, one)");
}

TEST(Masks, ThatCountStayWhereKeysAreMadeOutside) {
  const Claims claims = Fused(TorchLayersWithACountedMask());
  EXPECT_THAT(claims.masks, IsEmpty());
  EXPECT_THAT(claims.reasons,
              testing::UnorderedElementsAre(
                  "Attention 'out0': keeps its mask: takes keys made outside of it with a mask that numbers them by "
                  "the ones in 'attention_mask'; needs a past",
                  "Attention 'out1': keeps its mask: its keys are made outside of attention"));
}

class KeptCopies : public testing::TestWithParam<Kept> {};

TEST_P(KeptCopies, HaveTheirReason) {
  const Claims claims = Fused(GetParam().text);
  EXPECT_THAT(claims.plans.at("out1").unfolded, ElementsAre("", ""));
  EXPECT_THAT(claims.aliases, IsEmpty());
  EXPECT_THAT(claims.reasons,
              testing::Contains(std::string("Attention 'out1': its keys and values are copied: ") + GetParam().reason));
}

INSTANTIATE_TEST_SUITE_P(
    Guards, KeptCopies,
    testing::Values(Kept{"ForeignReaderOfTheTranspose",
                         std::string(kTwoLayers) + "again = Identity(kt)\noutput again f32[B,T,1,8]\n",
                         "Transpose 'kt' is still read by Identity 'again'"},
                    Kept{"ForeignReaderOfTheReshape",
                         std::string(kTwoLayers) + "again = Identity(v1)\noutput again f32[B,T,8]\n",
                         "Reshape 'v1' is still read by Identity 'again'"},
                    Kept{"AnOutput", std::string(kTwoLayers) + "output k1 f32[B,T,8]\n",
                         "Reshape 'k1' is still read by graph output 'k1'"},
                    Kept{"KeysOfAnInput", TwoLayersWith("kt", "kt = Transpose(past_k) {perm=[0,2,1,3]}"),
                         "key 'past_k' is not a layer's present"},
                    Kept{"HeadsThatNobodySays",
                         TwoLayersWith("out1", "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, scale=1.0}"),
                         "its number of key-value heads is not known"},
                    Kept{"ReadAsAQuery",
                         std::string(kTwoLayers) +
                             "out2 = Attention(k1, k1, v1) {q_num_heads=1, kv_num_heads=1}\noutput out2 f32[B,T,8]\n",
                         "Reshape 'k1' is still read by Attention 'out2'"}),
    [](const auto& test) { return test.param.name; });

using Fill = std::function<void(const std::string& branch, onnx::NodeProto* node)>;

// kTwoLayers and an If, each of whose branches has the node that `fill` writes.
graph::Graph WithNodeInBodies(const Fill& fill) {
  onnx::ModelProto model = *graph::ParseTextGraph(kTwoLayers);
  auto& always = *model.mutable_graph()->add_initializer();
  always.set_name("always");
  always.set_data_type(onnx::TensorProto::BOOL);
  always.add_int32_data(1);
  auto& holder = *model.mutable_graph()->add_node();
  holder.set_op_type("If");
  holder.add_input("always");
  holder.add_output("chosen");
  for (const char* branch : {"then_branch", "else_branch"}) {
    auto& attribute = *holder.add_attribute();
    attribute.set_name(branch);
    attribute.set_type(onnx::AttributeProto::GRAPH);
    auto& node = *attribute.mutable_g()->add_node();
    fill(branch, &node);
    attribute.mutable_g()->add_output()->set_name(node.output(0));
  }
  return *graph::Graph::Make(std::move(model), ".");
}

graph::Graph WithReaderInABody(const std::string& value) {
  return WithNodeInBodies([&](const std::string& branch, onnx::NodeProto* node) {
    node->set_op_type("Identity");
    node->add_input(value);
    node->add_output(branch + "_out");
  });
}

// An Attention that borrows layer 0's keys, causal in one branch.
graph::Graph WithAttentionInBodies(const std::string& output) {
  return WithNodeInBodies([&](const std::string& branch, onnx::NodeProto* node) {
    node->set_op_type("Attention");
    for (const char* input : {"rotated", "k1", "v1"}) node->add_input(input);
    node->add_output(output);
    for (const auto& [name, value] : {std::pair("q_num_heads", 4), std::pair("kv_num_heads", 1),
                                      std::pair("is_causal", branch == "then_branch" ? 1 : 0)}) {
      auto& attribute = *node->add_attribute();
      attribute.set_name(name);
      attribute.set_type(onnx::AttributeProto::INT);
      attribute.set_i(value);
    }
  });
}

TEST(Bodies, ANameOfTwoLayersThatMeanDifferentThingsGivesNeitherAPlan) {
  const Claims claims = FindClaims(WithAttentionInBodies("inner"), {});
  EXPECT_EQ(claims.plans.at("inner"), Plan{});
  EXPECT_THAT(claims.reasons, testing::Contains(testing::HasSubstr(
                                  "taken as ONNX says: two bodies have a value 'inner' that would mean different")));
}

TEST(Bodies, AMaskThatABodyCapturesStays) {
  const Claims claims = FindClaims(WithReaderInABody("bias"), {});
  EXPECT_THAT(claims.masks, IsEmpty());
  EXPECT_THAT(claims.reasons, ElementsAre(testing::HasSubstr("keeps its mask: is still read by a body of If")));
}

TEST(Bodies, ACopyThatABodyCapturesStays) {
  const Claims claims = FindClaims(WithReaderInABody("k1"), {});
  EXPECT_THAT(claims.aliases, IsEmpty());
  EXPECT_THAT(claims.reasons, ElementsAre(testing::HasSubstr("Reshape 'k1' is still read by a body of If")));
}

TEST(MaskWithoutPadding, IsNotReadWhereColumnsSayAllOfIt) {
  const Claims claims = Fused(graph::TorchLayersWith("both", "both = And(visible, true)"));
  for (const char* layer : {"out0", "out1"}) {
    EXPECT_TRUE(claims.plans.at(layer).drops_mask);
    EXPECT_EQ(claims.plans.at(layer).window, 4);
  }
  EXPECT_THAT(claims.masks, IsEmpty());
}

TEST(ConstantMask, IsNotReadWhereColumnsSayAllOfIt) {
  const Claims claims = FindClaims(GraphOf(R"(
input q f32[1,2,8]
input k f32[1,2,4]
input past f32[1,1,2,4]
output out f32[1,2,8]
output present_k f32[1,1,4,4]
output present_v f32[1,1,4,4]
const mask bool[1,1,2,4] = 0 1 1 0 0 0 1 1
out, present_k, present_v = Attention(q, k, k, mask, past, past) {q_num_heads=2, kv_num_heads=1}
)"),
                                   {});
  const Plan& plan = claims.plans.at("out");
  EXPECT_TRUE(plan.drops_mask);
  EXPECT_TRUE(plan.lower_right);
  EXPECT_EQ(plan.window, 2);
  EXPECT_FALSE(plan.ReadsOtherwise());
  EXPECT_THAT(claims.group, IsEmpty());
}

}  // namespace
}  // namespace kvshare::ep
