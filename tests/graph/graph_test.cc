#include "graph/graph.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graph/validate.h"
#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

std::string FailureOf(std::string_view text) {
  auto model = ParseTextGraph(text);
  EXPECT_TRUE(model.ok());
  const auto graph = Graph::Make(*std::move(model), ".");
  return graph.ok() ? "" : graph.status().message();
}

TEST(Graph, SortsNodesKeepingTheirOrderWherePossible) {
  const Graph graph = GraphOf("input x f32[4]\noutput y f32[4]\ny = Neg(b)\nb = Add(a, c)\nc = Abs(x)\na = Neg(x)\n");
  EXPECT_EQ(ToText(graph.Copy()), "c = Abs(x)\na = Neg(x)\nb = Add(a, c)\ny = Neg(b)\n");
}

TEST(Graph, RefusesCyclesAndValuesOfNoOrTwoProducers) {
  EXPECT_EQ(FailureOf("input x f32[4]\na = Neg(b)\nb = Neg(a)\n"),
            "Neg 'a': is part of a cycle or waits for one; a graph must have none");
  EXPECT_EQ(FailureOf("input x f32[4]\nconst c i64[1] = 1\nconst c i64[1] = 2\na = Neg(x)\n"),
            "model: initializer 'c' is given twice");
  EXPECT_THAT(FailureOf("input x f32[4]\na = Neg(z)\n"),
              testing::HasSubstr("Neg 'a': input 'z' is produced by no node"));
  EXPECT_THAT(FailureOf("input x f32[4]\na = Neg(x)\na = Abs(x)\n"),
              testing::HasSubstr("has another producer already"));
}

TEST(Graph, ReadsWhatASubgraphCaptures) {
  onnx::ModelProto model = *ParseTextGraph("input x f32[4]\ninput c bool[]\noutput y f32[4]\nh = Neg(x)\ny = If(c)\n");
  auto& branch = *model.mutable_graph()->mutable_node(1)->add_attribute();
  branch.set_name("then_branch");
  auto& inner = *branch.mutable_g()->add_node();
  inner.set_op_type("Abs");
  inner.add_input("h");
  inner.add_output("inner");
  branch.mutable_g()->add_output()->set_name("inner");
  const auto graph = Graph::Make(model, ".");
  ASSERT_TRUE(graph.ok());
  ASSERT_EQ(graph->Consumers("h").size(), 1U);
  EXPECT_EQ(graph->Consumers("h").front()->op_type(), "If");
}

TEST(Graph, ReadsConstantsOfInitializersAndOfConstantNodes) {
  const Graph graph = GraphOf(
      "input x f32[4]\nconst a i64[2] = 3 -4\nconst b f32[] = 0.5\nc = Constant() {value_ints=[7,8]}\n"
      "d = Constant() {value_int=9}\ny = Sum(x, a, b, c, d)\n");
  EXPECT_EQ(graph.Ints("a"), (std::vector<int64_t>{3, -4}));
  EXPECT_EQ(graph.Ints("c"), (std::vector<int64_t>{7, 8}));
  EXPECT_EQ(graph.Ints("d"), std::vector<int64_t>{9});
  EXPECT_EQ(graph.Scalar("b"), 0.5);
  EXPECT_EQ(graph.Ints("x"), std::nullopt);
}

TEST(Graph, AnInitializerThatIsAnInputTooIsNoConstant) {
  const Graph graph = GraphOf("input a i64[1]\nconst a i64[1] = 3\noutput y i64[1]\ny = Neg(a)\n");
  EXPECT_EQ(graph.Ints("a"), std::nullopt);
}

TEST(Graph, FreshNamesCollideWithNothing) {
  const Graph graph = GraphOf("input x f32[4]\nx_1 = Neg(x)\noutput x_1 f32[4]\n");
  EXPECT_EQ(graph.FreshName("x"), "x_2");
  EXPECT_EQ(graph.FreshName("z"), "z");
}

TEST(Graph, FreshNamesDoNotCollideWithASparseInitializer) {
  onnx::ModelProto model = *ParseTextGraph("input x f32[4]\ny = Neg(x)\noutput y f32[4]\n");
  model.mutable_graph()->add_sparse_initializer()->mutable_values()->set_name("taken");
  const auto graph = Graph::Make(model, ".");
  ASSERT_TRUE(graph.ok());
  EXPECT_EQ(graph->FreshName("taken"), "taken_1");
}

// ONNX Runtime refuses two nodes of one name.
TEST(Graph, ANodeThatComesHasANameOfItsOwn) {
  onnx::ModelProto model = *ParseTextGraph("input x f32[4]\ny = Neg(x)\nz = Neg(y)\noutput z f32[4]\n");
  model.mutable_graph()->mutable_node(0)->set_name("new");
  auto graph = Graph::Make(model, ".");
  ASSERT_TRUE(graph.ok());
  const Node& last = *graph->Producer("z");
  EXPECT_EQ(graph->InsertBefore(last, "Abs", {"y"}, {"new"}).name(), "new_1");
  EXPECT_EQ(graph->InsertBefore(last, "Abs", {"y"}, {"newer"}).name(), "newer");
}

TEST(Graph, ReleaseGivesBackEverythingButTheOrder) {
  const onnx::ModelProto model = *ParseTextGraph(kTwoLayers);
  auto graph = Graph::Make(model, ".");
  ASSERT_TRUE(graph.ok());
  EXPECT_EQ((*std::move(graph)).Release().SerializeAsString(), model.SerializeAsString());
}

// What a graph says after edits is what one that is made from the edited model says.
TEST(Graph, AnEditKeepsTheIndex) {
  Graph graph = GraphOf("input x f32[4]\na = Neg(x)\nb = Add(a, a)\nc = Abs(b)\noutput c f32[4]\n");
  EXPECT_TRUE(graph.DependsOn("c", "a"));
  const Node& b = *graph.Producer("b");
  const Node& fresh = graph.InsertBefore(b, "Identity", {"a"}, {graph.FreshName("a")});
  graph.SetInput(b, 1, fresh.output(0));
  EXPECT_EQ(graph.FreshName("a"), "a_2");
  graph.SetInputs(*graph.Producer("c"), {"x"});
  graph.SetOutputs(b, {"d", "e"});
  EXPECT_FALSE(graph.DependsOn("c", "a"));
  EXPECT_TRUE(graph.DependsOn("e", "a"));
  const auto again = Graph::Make(graph.Copy(), ".");
  ASSERT_TRUE(again.ok()) << again.status().message();
  for (const char* value : {"x", "a", "a_1", "b", "c", "d", "e"}) {
    EXPECT_EQ(graph.IsRead(value), again->IsRead(value)) << value;
    EXPECT_EQ(graph.Consumers(value).size(), again->Consumers(value).size()) << value;
    EXPECT_EQ(graph.Producer(value) == nullptr, again->Producer(value) == nullptr) << value;
  }
  graph.Remove(b);
  EXPECT_EQ(graph.Producer("d"), nullptr);
  EXPECT_EQ(graph.Consumers("a").size(), 1U);
  EXPECT_EQ(ToText(graph.Copy()), "a = Neg(x)\na_1 = Identity(a)\nc = Abs(x)\n");
}

TEST(Graph, AnOutputThatGoesIsAValueStill) {
  for (const char* known : {"", "value y f32[B,2]\n"}) {
    Graph graph = GraphOf(std::string(known) + "input x f32[B,2]\noutput y f32[B,2]\noutput z f32[B,2]\n" +
                          "y = Neg(x)\nz = Neg(y)\n");
    ASSERT_TRUE(graph.IsOutput("y"));
    graph.RemoveOutput("y");
    graph.RemoveOutput("x");  // which is none
    EXPECT_FALSE(graph.IsOutput("y"));
    EXPECT_EQ(graph.Shape("y"), (std::vector<int64_t>{-1, 2}));
    EXPECT_EQ(graph.ExtentName("y", 0), "B");
    ASSERT_EQ(graph.proto().output_size(), 1);
    EXPECT_EQ(graph.proto().output(0).name(), "z");
    ASSERT_EQ(graph.proto().value_info_size(), 1);
    EXPECT_EQ(graph.proto().value_info(0).name(), "y");
  }
}

TEST(Graph, AnEditInABodyIsToldToTheGraphAround) {
  onnx::ModelProto model = *ParseTextGraph("input x f32[4]\ninput c bool[]\noutput y f32[4]\nh = Neg(x)\ny = If(c)\n");
  auto& branch = *model.mutable_graph()->mutable_node(1)->add_attribute();
  branch.set_name("then_branch");
  auto& inner = *branch.mutable_g()->add_node();
  inner.set_op_type("Add");
  inner.add_input("h");
  inner.add_input("h");
  inner.add_output("inner");
  branch.mutable_g()->add_output()->set_name("inner");
  auto graph = Graph::Make(model, ".");
  ASSERT_TRUE(graph.ok());
  Graph& body = *graph->bodies().front();
  const Node& add = *body.nodes().front();
  body.SetInput(add, 0, "x");
  EXPECT_EQ(graph->Consumers("h").size(), 1U);
  EXPECT_EQ(graph->Consumers("x").size(), 2U);
  EXPECT_TRUE(graph->DependsOn("y", "h"));
  body.SetInput(add, 1, "x");
  EXPECT_FALSE(graph->IsRead("h"));
  EXPECT_FALSE(graph->DependsOn("y", "h"));
  EXPECT_TRUE(graph->DependsOn("y", "x"));
}

TEST(Validate, NamesWhatAnEditBroke) {
  Graph late = GraphOf("input x f32[4]\na = Neg(x)\nb = Abs(a)\noutput b f32[4]\n");
  late.SetInput(*late.nodes()[0], 0, "b");
  EXPECT_EQ(Validate(late).message(), "Neg 'a': input 'b' is not produced before");
  Graph twice = GraphOf("input x f32[4]\na = Neg(x)\nb = Abs(a)\noutput a f32[4]\n");
  twice.SetOutputs(*twice.nodes()[1], {"a"});
  EXPECT_EQ(Validate(twice).message(), "Abs 'b': output 'a' is produced twice");
  Graph lost = GraphOf("input x f32[4]\na = Neg(x)\noutput a f32[4]\n");
  lost.Remove(*lost.nodes()[0]);
  EXPECT_EQ(Validate(lost).message(), "model: graph output 'a' is produced by no node");
}

TEST(Validate, NamesADomainThatIsNotImported) {
  const Graph graph = GraphOf("input x f32[4]\ny = nobody.Neg(x)\noutput y f32[4]\n");
  EXPECT_EQ(Validate(graph).message(), "Neg 'y': domain 'nobody' is not imported; needs an opset_import");
  EXPECT_TRUE(Validate(GraphOf(kTwoLayers)).ok());
}

}  // namespace
}  // namespace kvshare::graph
