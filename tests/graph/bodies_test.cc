// Attention in the bodies of If, Loop and Scan, and in functions of the model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graph/inspection.h"
#include "graph/layers.h"
#include "graph/rewrite_graph.h"
#include "graph/validate.h"
#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

using testing::HasSubstr;

RewriteOptions To(Target target) {
  RewriteOptions options;
  options.target = target;
  if (target == Target::kKvshareAttention) options.rope = Rope::kKeep;
  return options;
}

// kTwoLayers with the nodes from that of output `first` on, up to that of `last`, moved into a body of an If that gives
// `last`.
onnx::ModelProto WithBody(const std::string& first, const std::string& last) {
  onnx::ModelProto model = *ParseTextGraph(kTwoLayers);
  auto& main = *model.mutable_graph();
  auto& condition = *main.add_input();
  condition.set_name("condition");
  condition.mutable_type()->mutable_tensor_type()->set_elem_type(onnx::TensorProto::BOOL);
  onnx::GraphProto body;
  google::protobuf::RepeatedPtrField<onnx::NodeProto> before;
  google::protobuf::RepeatedPtrField<onnx::NodeProto> after;
  bool inside = false;
  bool behind = false;
  for (const auto& node : main.node()) {
    inside = inside || node.output(0) == first;
    *(behind ? after.Add() : inside ? body.add_node() : before.Add()) = node;
    if (node.output(0) != last) continue;
    inside = false;
    behind = true;
  }
  body.add_output()->set_name(last + "_of_body");
  auto& hand_over = *body.add_node();
  hand_over.set_op_type("Identity");
  hand_over.add_input(last);
  hand_over.add_output(last + "_of_body");
  *main.mutable_node() = before;
  auto& choice = *main.add_node();
  choice.set_op_type("If");
  choice.set_name("choice");
  choice.add_input("condition");
  choice.add_output("chosen");
  for (const char* name : {"then_branch", "else_branch"}) {
    auto& attribute = *choice.add_attribute();
    attribute.set_name(name);
    attribute.set_type(onnx::AttributeProto::GRAPH);
    *attribute.mutable_g() = body;
  }
  for (const auto& node : after) {
    auto& copy = *main.add_node();
    copy = node;
    for (auto& input : *copy.mutable_input())
      if (input == last) input = "chosen";
  }
  return model;
}

Graph GraphOf(const onnx::ModelProto& model) {
  auto graph = Graph::Make(model, ".");
  EXPECT_TRUE(graph.ok()) << (graph.ok() ? "" : graph.status().message());
  return *std::move(graph);
}

std::string BodyText(const onnx::ModelProto& model, int branch) {
  onnx::ModelProto body;
  for (const auto& node : model.graph().node())
    if (node.op_type() == "If") *body.mutable_graph() = node.attribute(branch).g();
  return ToText(body);
}

TEST(Bodies, ALayerBorrowsFromTheGraphAround) {
  const Graph graph = GraphOf(WithBody("rotated", "out1"));
  const auto layers = FindLayers(graph);
  ASSERT_EQ(layers.size(), 3U);  // the source and one in each branch
  for (const int i : {1, 2}) {
    EXPECT_EQ(layers[i].kind, LayerKind::kShared);
    EXPECT_EQ(layers[i].source, 0);
    EXPECT_EQ(layers[i].window, 4);
    EXPECT_EQ(layers[i].trouble, "");
  }
  const Inspection inspection = Describe(graph);
  EXPECT_EQ(inspection.layers[0].place, "");
  EXPECT_EQ(inspection.layers[1].place, "then_branch of If 'choice'");
  EXPECT_EQ(inspection.layers[2].place, "else_branch of If 'choice'");
}

TEST(Bodies, SharedLayersAreRewrittenInEachTarget) {
  for (const auto& [target, text] :
       {std::pair{Target::kKvshare, "out1 = kvshare.GroupQueryAttention(out0, _, _, _, _, seqlens, total, cos_table"},
        std::pair{Target::kKvshareAttention,
                  "out1 = kvshare.Attention(rotated, present_k, present_v, _, _, _, _, "
                  "attention_mask)"},
        std::pair{Target::kOrt, "out1 = com.microsoft.GroupQueryAttention(out0, out1_empty_kv"}}) {
    Graph graph = GraphOf(WithBody("rotated", "out1"));
    const auto report = RewriteGraph(graph, To(target));
    ASSERT_TRUE(report.ok()) << report.status().message();
    const onnx::ModelProto model = graph.Copy();
    for (const int branch : {0, 1}) {
      EXPECT_THAT(BodyText(model, branch), HasSubstr(text));
      EXPECT_THAT(BodyText(model, branch), testing::Not(HasSubstr("Transpose")));
    }
    // The mask lay outside and nobody else reads it.
    EXPECT_THAT(ToText(model), testing::Not(HasSubstr("CumSum")));
    EXPECT_TRUE(Graph::Make(model, ".").ok());
  }
}

TEST(Bodies, SourceAndSharedLayerMayBothBeInside) {
  onnx::ModelProto model = WithBody("out0", "out1");
  // The presents are the branch's own now; graph outputs of the main graph cannot name them.
  model.mutable_graph()->mutable_output()->DeleteSubrange(1, 2);
  Graph graph = GraphOf(model);
  const auto layers = FindLayers(graph);
  ASSERT_EQ(layers.size(), 4U);
  EXPECT_EQ(layers[1].source, 0);
  EXPECT_EQ(layers[3].source, 2);  // not that of the other branch, whose values have the same names
  ASSERT_TRUE(RewriteGraph(graph, To(Target::kKvshare)).ok());
  EXPECT_THAT(BodyText(graph.Copy(), 1), HasSubstr("kvshare.GroupQueryAttention(out0, _, _, _, _, seqlens, total"));
}

TEST(Bodies, WithANameOfTheirSurroundingsAreLeftAlone) {
  onnx::ModelProto model = WithBody("rotated", "out1");
  for (auto& node : *model.mutable_graph()->mutable_node())
    if (node.op_type() == "If")
      for (auto& attribute : *node.mutable_attribute()) {
        auto& own = *attribute.mutable_g()->add_node();
        own.set_op_type("Identity");
        own.add_input("attention_mask");
        own.add_output("seqlens");  // another value than the source's
      }
  Graph graph = GraphOf(model);
  const std::string before = graph.Copy().SerializeAsString();
  RewriteOptions options = To(Target::kKvshare);
  options.keep_own = true;
  const auto report = RewriteGraph(graph, options);
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(graph.Copy().SerializeAsString(), before);
  EXPECT_EQ(report->outcomes.front().reason,
            "lies in a body that has a 'seqlens' beside that of the graph around it; give it a name of its own");
}

TEST(Bodies, AreCheckedLikeTheMainGraph) {
  onnx::ModelProto model = WithBody("rotated", "out1");
  auto& node = *model.mutable_graph()->mutable_node()->rbegin();
  ASSERT_EQ(node.op_type(), "Identity");
  for (auto& holder : *model.mutable_graph()->mutable_node())
    if (holder.op_type() == "If") {
      auto& twice = *holder.mutable_attribute(0)->mutable_g()->add_node();
      twice.set_op_type("Neg");
      twice.add_input("q0");
      twice.add_output("rotated");
    }
  EXPECT_EQ(Graph::Make(model, ".").status().message(),
            "Neg '-> rotated': output 'rotated' has another producer already; needs a name of its own");
}

TEST(Functions, OfTheModelAreReportedAndDeclined) {
  onnx::ModelProto model = *ParseTextGraph(kTwoLayers);
  auto& function = *model.add_functions();
  function.set_name("Layer");
  function.set_domain("local");
  function.add_input("q");
  function.add_input("k");
  function.add_input("v");
  function.add_output("y");
  auto& attention = *function.add_node();
  attention.set_op_type("Attention");
  for (const char* name : {"q", "k", "v"}) attention.add_input(name);
  attention.add_output("y");
  Graph graph = GraphOf(model);
  const Inspection inspection = Describe(graph);
  ASSERT_EQ(inspection.layers.size(), 3U);
  EXPECT_EQ(inspection.layers[2].place, "function 'Layer'");
  const auto report = RewriteGraph(graph, To(Target::kKvshare));
  ASSERT_TRUE(report.ok());
  EXPECT_TRUE(report->changed);
  EXPECT_THAT(report->outcomes, testing::Contains(testing::Field(
                                    &RuleOutcome::reason,
                                    "lies in function 'Layer' of the model, which is not looked through; inline it "
                                    "first (onnx.inliner)")));
  EXPECT_EQ(graph.Copy().functions(0).SerializeAsString(), model.functions(0).SerializeAsString());
}

}  // namespace
}  // namespace kvshare::graph
