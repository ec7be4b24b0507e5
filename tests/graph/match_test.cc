// The guards that rewrite rules and an execution provider's claims share.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graph/match/attention.h"
#include "graph/match/readers.h"
#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

Decline ReadersOf(const std::string& value, const Graph& graph) { return CheckReaders(graph, value, IsAttentionOp); }

TEST(CheckReaders, NamesWhoElseReadsAValue) {
  EXPECT_TRUE(ReadersOf("bias", GraphOf(kTwoLayers)).ok());
  const Graph read = GraphOf(std::string(kTwoLayers) + "spy = Identity(bias)\n");
  EXPECT_EQ(ReadersOf("bias", read).code(), DeclineCode::kValueIsRead);
  EXPECT_EQ(ReadersOf("bias", read).message(), "is still read by Identity 'spy'");
  const Graph output = GraphOf(std::string(kTwoLayers) + "output bias f32[B,1,S,T]\n");
  EXPECT_EQ(ReadersOf("bias", output).code(), DeclineCode::kValueIsOutput);
  EXPECT_EQ(ReadersOf("bias", output).message(), "is still read by graph output 'bias'");
}

TEST(CheckReaders, NamesABodyThatCapturesAValue) {
  onnx::ModelProto model =
      *ParseTextGraph(std::string(kTwoLayers) + "input condition bool[]\nchosen = If(condition)\n");
  Node& holder = *model.mutable_graph()->mutable_node(model.graph().node_size() - 1);
  auto& branch = *holder.add_attribute();
  branch.set_name("then_branch");
  Node& inner = *branch.mutable_g()->add_node();
  inner.set_op_type("Attention");
  inner.add_input("bias");
  inner.add_output("inner");
  branch.mutable_g()->add_output()->set_name("inner");
  const auto graph = Graph::Make(model, ".");
  ASSERT_TRUE(graph.ok()) << graph.status().message();
  EXPECT_EQ(ReadersOf("bias", *graph).code(), DeclineCode::kValueIsCaptured);
  EXPECT_EQ(ReadersOf("bias", *graph).message(), "is still read by a body of If 'chosen'");
}

std::vector<std::string> MaskGroup(const Graph& graph) {
  std::vector<std::string> names;
  for (const Node* node : NodesOnlyFor(graph, {"bias"}, IsAttentionOp)) names.push_back(NameOf(*node));
  return names;
}

TEST(NodesOnlyFor, AreThoseThatNobodyElseReads) {
  EXPECT_THAT(MaskGroup(GraphOf(kTwoLayers)),
              testing::ElementsAre("count", "kv", "S", "T", "begin", "new", "q", "causal", "distance", "near",
                                   "visible", "wide", "kept", "both", "bias3", "bias"));
  EXPECT_THAT(MaskGroup(GraphOf(std::string(kTwoLayers) + "spy = Identity(visible)\n")),
              testing::ElementsAre("wide", "kept", "both", "bias3", "bias"));
  EXPECT_THAT(MaskGroup(GraphOf(std::string(kTwoLayers) + "output bias f32[B,1,S,T]\n")), testing::IsEmpty());
  // Attention reads a value of theirs as something else than its mask.
  const std::string moved = TwoLayersWith("S", "moved = Neg(rotated)\nS = Shape(moved) {start=1, end=2}");
  EXPECT_THAT(MaskGroup(GraphOf(TwoLayersWith(
                  "out1", "out1 = Attention(moved, k1, v1, bias) {q_num_heads=4, kv_num_heads=1}", moved))),
              testing::AllOf(testing::Contains("S"), testing::Not(testing::Contains("moved"))));
}

// An execution provider knows no lengths: only what takes a mask for a key mask may have another source.
TEST(MatchSharedAttention, AsksForLengthsOnlyWhereTheyCount) {
  const Graph graph = GraphOf(TwoLayersWith("ones", "ones = ReduceSum(position_ids, one) {keepdims=0}"));
  const auto layers = FindLayers(graph);
  EXPECT_TRUE(MatchSharedAttention(layers, layers[1], false).ok());
  EXPECT_EQ(MatchSharedAttention(layers, layers[1], true).status().code(), DeclineCode::kLengthsDiffer);
}

}  // namespace
}  // namespace kvshare::graph
