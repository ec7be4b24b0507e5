// Attention in the bodies of If, Loop and Scan, and in functions of the model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graph/inspection.h"
#include "graph/layers.h"
#include "graph/validate.h"
#include "tests/graph/rewrite_text.h"
#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

using testing::HasSubstr;

void AddIdentity(const std::string& from, const std::string& to, onnx::GraphProto& graph) {
  auto& node = *graph.add_node();
  node.set_op_type("Identity");
  node.add_input(from);
  node.add_output(to);
}

onnx::NodeProto Holder(const std::string& op, const onnx::GraphProto& body) {
  onnx::NodeProto node;
  node.set_op_type(op);
  node.set_name("holder");
  node.add_output("chosen");
  const auto hold = [&](const char* name) {
    auto& attribute = *node.add_attribute();
    attribute.set_name(name);
    attribute.set_type(onnx::AttributeProto::GRAPH);
    *attribute.mutable_g() = body;
  };
  if (op == "If") {
    node.add_input("condition");
    hold("then_branch");
    hold("else_branch");
    return node;
  }
  hold("body");
  auto& inside = *node.mutable_attribute(0)->mutable_g();
  if (op == "Loop") {
    for (const char* name : {"", "condition"}) node.add_input(name);
    for (const char* name : {"iteration", "go_on"}) inside.add_input()->set_name(name);
    AddIdentity("go_on", "go_on_next", inside);
    *inside.add_output() = inside.output(0);  // the condition comes first
    inside.mutable_output(0)->set_name("go_on_next");
  } else {
    node.add_input("steps");
    inside.add_input()->set_name("step");
    SetInt(node, "num_scan_inputs", 1);
  }
  return node;
}

// kTwoLayers with the nodes from that of output `first` on, up to that of `last`, moved into a body of an If, Loop or
// Scan that gives `last`.
onnx::ModelProto WithBody(const std::string& first, const std::string& last, const std::string& op = "If") {
  onnx::ModelProto model = *ParseTextGraph(std::string(kTwoLayers) + "input condition bool[]\ninput steps f32[N]\n");
  auto& main = *model.mutable_graph();
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
  AddIdentity(last, last + "_of_body", body);
  *main.mutable_node() = before;
  *main.add_node() = Holder(op, body);
  for (const auto& node : after) {
    auto& copy = *main.add_node();
    copy = node;
    for (auto& input : *copy.mutable_input())
      if (input == last) input = "chosen";
  }
  return model;
}

onnx::NodeProto& HolderOf(onnx::ModelProto& model) {
  for (auto& node : *model.mutable_graph()->mutable_node())
    if (node.name() == "holder") return node;
  ADD_FAILURE() << "no holder";
  return *model.mutable_graph()->add_node();
}

Graph GraphOf(const onnx::ModelProto& model) {
  auto graph = Graph::Make(model, ".");
  EXPECT_TRUE(graph.ok()) << (graph.ok() ? "" : graph.status().message());
  return *std::move(graph);
}

// Of every body in the model.
std::vector<std::string> BodyTexts(const onnx::ModelProto& model) {
  std::vector<std::string> texts;
  for (const auto& node : model.graph().node())
    for (const auto& attribute : node.attribute())
      if (attribute.has_g()) {
        onnx::ModelProto body;
        *body.mutable_graph() = attribute.g();
        texts.push_back(ToText(body));
      }
  return texts;
}

class Bodies : public testing::TestWithParam<const char*> {
 protected:
  // "then_branch of If 'holder'", ...
  std::vector<std::string> Places() const {
    const std::string op = GetParam();
    if (op == "If") return {"then_branch of If 'holder'", "else_branch of If 'holder'"};
    return {"body of " + op + " 'holder'"};
  }
};

INSTANTIATE_TEST_SUITE_P(Holders, Bodies, testing::Values("If", "Loop", "Scan"),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(Bodies, ALayerBorrowsFromTheGraphAround) {
  const Graph graph = GraphOf(WithBody("rotated", "out1", GetParam()));
  const auto layers = FindLayers(graph);
  ASSERT_EQ(layers.size(), 1 + Places().size());  // the source and one in each body
  const Inspection inspection = Describe(graph);
  EXPECT_EQ(inspection.layers[0].place, "");
  for (size_t i = 1; i < layers.size(); ++i) {
    EXPECT_EQ(layers[i].kind, LayerKind::kShared);
    EXPECT_EQ(layers[i].source, 0);
    EXPECT_EQ(layers[i].window, 4);
    EXPECT_EQ(layers[i].trouble.message(), "");
    EXPECT_EQ(inspection.layers[i].place, Places()[i - 1]);
  }
}

TEST_P(Bodies, SharedLayersAreRewrittenInEachTarget) {
  for (const auto& [target, text] :
       {std::pair{Target::kKvshare, "out1 = kvshare.GroupQueryAttention(out0, _, _, _, _, seqlens, total, cos_table"},
        std::pair{Target::kKvshareAttention,
                  "out1 = kvshare.Attention(rotated, present_k, present_v, _, _, _, _, "
                  "attention_mask)"},
        std::pair{Target::kOrt, "out1 = com.microsoft.GroupQueryAttention(out0, out1_empty_kv"}}) {
    Graph graph = GraphOf(WithBody("rotated", "out1", GetParam()));
    const auto report = RewriteGraph(graph, To(target));
    ASSERT_TRUE(report.ok()) << report.status().message();
    const onnx::ModelProto model = graph.Copy();
    const auto bodies = BodyTexts(model);
    ASSERT_EQ(bodies.size(), Places().size());
    for (const std::string& body : bodies) {
      EXPECT_THAT(body, HasSubstr(text));
      EXPECT_THAT(body, testing::Not(HasSubstr("Transpose")));
    }
    // The mask lay outside and nobody else reads it.
    EXPECT_THAT(ToText(model), testing::Not(HasSubstr("CumSum")));
    EXPECT_TRUE(Graph::Make(model, ".").ok());
  }
}

TEST_P(Bodies, SourceAndSharedLayerMayBothBeInside) {
  onnx::ModelProto model = WithBody("out0", "out1", GetParam());
  // The presents are the body's own now; graph outputs of the main graph cannot name them.
  model.mutable_graph()->mutable_output()->DeleteSubrange(1, 2);
  Graph graph = GraphOf(model);
  const auto layers = FindLayers(graph);
  ASSERT_EQ(layers.size(), 2 * Places().size());
  for (size_t i = 1; i < layers.size(); i += 2)  // not that of another branch, whose values have the same names
    EXPECT_EQ(layers[i].source, static_cast<int>(i) - 1);
  ASSERT_TRUE(RewriteGraph(graph, To(Target::kKvshare)).ok());
  for (const std::string& body : BodyTexts(graph.Copy()))
    EXPECT_THAT(body, HasSubstr("kvshare.GroupQueryAttention(out0, _, _, _, _, seqlens, total"));
}

TEST_P(Bodies, WithANameOfTheirSurroundingsAreLeftAlone) {
  onnx::ModelProto model = WithBody("rotated", "out1", GetParam());
  for (auto& attribute : *HolderOf(model).mutable_attribute())
    if (attribute.has_g()) AddIdentity("attention_mask", "seqlens", *attribute.mutable_g());  // not the source's
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

TEST_P(Bodies, AreCheckedLikeTheMainGraph) {
  onnx::ModelProto model = WithBody("rotated", "out1", GetParam());
  AddIdentity("q0", "rotated", *HolderOf(model).mutable_attribute(0)->mutable_g());
  EXPECT_EQ(Graph::Make(model, ".").status().message(),
            "Identity '-> rotated': output 'rotated' has another producer already; needs a name of its own");
}

// A body's input `name` in place of `read` in its Attention; the Loop or Scan begins with `initial`.
onnx::ModelProto Carrying(const std::string& op, const std::string& read, const std::string& initial) {
  onnx::ModelProto model = WithBody("out1", "out1", op);
  onnx::NodeProto& holder = HolderOf(model);
  holder.add_input(initial);
  auto& body = *holder.mutable_attribute(0)->mutable_g();
  body.add_input()->set_name("carried");
  for (auto& input : *body.mutable_node(0)->mutable_input())
    if (input == read) input = "carried";
  if (op == "Loop") {
    AddIdentity("out1", "carried_next", body);
    body.mutable_output()->Add()->set_name("carried_next");
    body.mutable_output()->SwapElements(1, 2);
    holder.add_output("carried_last");
    holder.mutable_output()->SwapElements(0, 1);
  } else {
    SetInt(holder, "num_scan_inputs", 2);
  }
  return model;
}

class LoopBodies : public Bodies {};  // a branch has no inputs

INSTANTIATE_TEST_SUITE_P(Holders, LoopBodies, testing::Values("Loop", "Scan"),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(LoopBodies, MayCarryTheQuery) {
  Graph graph = GraphOf(Carrying(GetParam(), "rotated", "rotated"));
  ASSERT_TRUE(RewriteGraph(graph, To(Target::kKvshare)).ok());
  EXPECT_THAT(BodyTexts(graph.Copy()).front(),
              HasSubstr("out1 = kvshare.GroupQueryAttention(carried, _, _, _, _, seqlens, total"));
  Graph other = GraphOf(Carrying(GetParam(), "rotated", "steps"));
  EXPECT_EQ(RewriteGraph(other, To(Target::kKvshare))->outcomes.front().reason,
            "its mask takes the number of queries from 'input_ids', which the query does not depend on");
}

TEST_P(LoopBodies, CarriedKeysAreNoLayers) {
  onnx::ModelProto model = Carrying(GetParam(), "k1", "k1");
  auto& attention = *HolderOf(model).mutable_attribute(0)->mutable_g()->mutable_node(0);
  attention.set_input(2, "carried");
  Graph graph = GraphOf(model);
  EXPECT_EQ(RewriteGraph(graph, To(Target::kKvshare))->outcomes.front().reason,
            "borrows from an input of " + Places().front() + ", not from a layer of this model");
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

TEST(Bodies, AMaskThatABodyReadsStaysAndSaysByWhom) {
  onnx::ModelProto model = *ParseTextGraph(std::string(kTwoLayers) + "input condition bool[]\n");
  onnx::GraphProto body;
  AddIdentity("both", "inside", body);
  body.add_output()->set_name("inside");
  *model.mutable_graph()->add_node() = Holder("If", body);
  auto graph = Graph::Make(std::move(model), ".");
  ASSERT_TRUE(graph.ok()) << graph.status().message();
  const auto report = RewriteGraph(*graph, To(Target::kKvshare));
  ASSERT_TRUE(report.ok()) << report.status().message();
  std::vector<std::string> reasons;
  for (const auto& outcome : report->outcomes)
    if (outcome.rule == "dead-nodes" && !outcome.applied) reasons.push_back(outcome.reason);
  EXPECT_THAT(reasons, testing::ElementsAre("And is still read by a body of If 'holder'"));
}

TEST(CachesOfBodies, KeepTheirType) {
  onnx::ModelProto model = WithBody("out0", "out1");
  while (model.graph().output_size() > 1) model.mutable_graph()->mutable_output()->RemoveLast();  // presents
  Graph graph = GraphOf(model);
  RewriteOptions options;
  options.kv_cache = KvCache{.type = CacheType::kFp16};
  const auto report = RewriteGraph(graph, options);
  ASSERT_TRUE(report.ok()) << report.status().message();
  std::vector<std::string> reasons;
  for (const auto& outcome : report->outcomes)
    if (outcome.rule == "kv-cache") reasons.push_back(outcome.reason);
  EXPECT_THAT(reasons, testing::Contains("lies in then_branch of If 'holder', whose caches keep their type"));
  EXPECT_EQ(graph.ElementType("past_k"), onnx::TensorProto::FLOAT);
}

}  // namespace
}  // namespace kvshare::graph
