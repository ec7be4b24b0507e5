// What goes when nobody reads it any more, and who keeps the rest.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/graph/rewrite_text.h"
#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

TEST(DeadNodes, AMaskThatIsReadElsewhereStaysAndSaysByWhom) {
  const std::string text = TwoLayersWith("logits",
                                         "spy = Identity(both)\noutput spied bool[B,S,T]\nspied = Identity(spy)\n"
                                         "logits = Identity(out1)");
  const Rewritten result = RewriteText(text, To(Target::kKvshare));
  EXPECT_EQ(result.DeclineOf("dead-nodes"), "And is still read by Identity 'spy'");
  const std::string after = TextAfter(text, To(Target::kKvshare));
  EXPECT_THAT(after, testing::HasSubstr("both = And(kept, visible)"));
  EXPECT_THAT(after, testing::Not(testing::HasSubstr("Where")));
}

TEST(DeadNodes, AMaskThatIsAnOutputOfTheModelStays) {
  const std::string text = TwoLayersWith("wide", "output both bool[B,S,T]\nwide = Unsqueeze(attention_mask, one)");
  EXPECT_EQ(RewriteText(text, To(Target::kKvshare)).DeclineOf("dead-nodes"),
            "And is still read by graph output 'both'");
}

TEST(DeadNodes, ATransposedKeyThatIsReadElsewhereStays) {
  const std::string text =
      TwoLayersWith("logits", "output spied f32[B,T,8]\nspied = Identity(k1)\nlogits = Identity(out1)");
  const Rewritten result = RewriteText(text, To(Target::kKvshare));
  EXPECT_EQ(result.DeclineOf("dead-nodes"), "Reshape is still read by Identity 'spied'");
  EXPECT_THAT(TextAfter(text, To(Target::kKvshare)), testing::HasSubstr("kt = Transpose(present_k)"));
}

TEST(DeadNodes, ANodeWithBodiesStays) {
  onnx::ModelProto model = *ParseTextGraph(kTwoLayers);
  auto& nodes = *model.mutable_graph()->mutable_node();
  // A second input of the Transpose, which goes, comes out of an If.
  Node& holder = *nodes.Add();
  holder.set_op_type("If");
  holder.add_input("condition");
  holder.add_output("spare");
  for (const char* name : {"then_branch", "else_branch"}) {
    auto& branch = *holder.add_attribute();
    branch.set_name(name);
    Node& inner = *branch.mutable_g()->add_node();
    inner.set_op_type("Abs");
    inner.add_input("attention_mask");
    inner.add_output("inner");
    branch.mutable_g()->add_output()->set_name("inner");
  }
  auto& condition = *model.mutable_graph()->add_input();
  condition.set_name("condition");
  for (Node& node : nodes)
    if (node.output(0) == "vt") node.add_input("spare");
  auto graph = Graph::Make(model, ".");
  ASSERT_TRUE(graph.ok()) << graph.status().message();
  const auto report = RewriteGraph(*graph, To(Target::kKvshare));
  ASSERT_TRUE(report.ok());
  EXPECT_TRUE(report->changed);
  EXPECT_THAT(ToText(graph->Copy()), testing::HasSubstr("spare = If(condition)"));
  EXPECT_THAT(ToText(graph->Copy()), testing::Not(testing::HasSubstr("Transpose")));
}

TEST(DeadNodes, NodesThatNobodyReadBeforeStay) {
  const std::string text = std::string(kTwoLayers) + "unread = Identity(q0)\n";
  EXPECT_THAT(TextAfter(text, To(Target::kKvshare)), testing::HasSubstr("unread = Identity(q0)"));
}

}  // namespace
}  // namespace kvshare::graph
