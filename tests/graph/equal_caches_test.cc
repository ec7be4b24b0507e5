// Caches that always hold the same: which ones do, and what becomes of a graph that keeps one of them.
#include "graph/match/equal_caches.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/graph/rewrite_text.h"

namespace kvshare::graph {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Layers 1 and 3 write one key into a cache each, at places that they count in it; layer 2 writes another key.
constexpr std::string_view kThreeCaches = R"(
import com.microsoft 1
import other 1
input position i64[B,S]
input query f32[B,S,8]
input key f32[B,S,8]
input key_2 f32[B,S,8]
input past_1 f32[B,C,8]
input past_2 f32[B,C,8]
input past_3 f32[B,C,8]
output out f32[B,S,8]
output present_1 f32[B,C,8]
output present_2 f32[B,C,8]
output present_3 f32[B,C,8]
const two i64[1] = 2
rows_1 = Shape(past_1) {start=1, end=2}
place_1 = Mod(position, rows_1)
new_1 = Mul(key, key)
present_1 = ScatterND(past_1, place_1, new_1)
read_1 = Transpose(present_1) {perm=[0,2,1]}
scores_1 = MatMul(query, read_1)
out_1 = MatMul(scores_1, present_1)
rows_2 = Shape(past_2) {start=1, end=2}
place_2 = Mod(position, rows_2)
present_2 = ScatterND(past_2, place_2, key_2)
rows_3 = Shape(past_3) {start=1, end=2}
place_3 = Mod(position, rows_3)
new_3 = Mul(key, key)
present_3 = ScatterND(past_3, place_3, new_3)
read_3 = Transpose(present_3) {perm=[0,2,1]}
scores_3 = MatMul(out_1, read_3)
out_3 = MatMul(scores_3, present_3)
out = Identity(out_3)
)";

std::vector<std::string> NamesOf(const EqualCaches& equal) {
  std::vector<std::string> names;
  for (const EqualCache& cache : equal.caches) names.push_back(cache.past + " is " + cache.of);
  return names;
}

std::vector<std::string> EqualIn(const Graph& graph) { return NamesOf(FindEqualCaches(graph, FindLayers(graph))); }
std::vector<std::string> EqualIn(std::string_view text) { return EqualIn(GraphOf(text)); }
std::vector<std::string> EqualIn(const onnx::ModelProto& model) { return EqualIn(*Graph::Make(model, ".")); }

template <typename Infos>
std::vector<std::string> NamesIn(const Infos& infos) {
  std::vector<std::string> names;
  for (const auto& info : infos) names.push_back(info.name());
  return names;
}

TEST(EqualCachesRule, OneStaysAndWhatTheGraphMakesOfIt) {
  Graph graph = GraphOf(kThreeCaches);
  const Rewritten done = RewriteIn(graph, To(Target::kKvshare));
  const onnx::ModelProto after = graph.Copy();
  EXPECT_THAT(NamesIn(after.graph().input()), ElementsAre("position", "query", "key", "key_2", "past_1", "past_2"));
  EXPECT_THAT(NamesIn(after.graph().output()), ElementsAre("out", "present_1", "present_2"));
  EXPECT_THAT(NamesIn(after.graph().value_info()), IsEmpty());
  EXPECT_EQ(ToText(after), R"(rows_1 = Shape(past_1) {start=1, end=2}
place_1 = Mod(position, rows_1)
new_1 = Mul(key, key)
present_1 = ScatterND(past_1, place_1, new_1)
read_1 = Transpose(present_1) {perm=[0,2,1]}
scores_1 = MatMul(query, read_1)
out_1 = MatMul(scores_1, present_1)
rows_2 = Shape(past_2) {start=1, end=2}
place_2 = Mod(position, rows_2)
present_2 = ScatterND(past_2, place_2, key_2)
scores_3 = MatMul(out_1, read_1)
out_3 = MatMul(scores_3, present_1)
out = Identity(out_3)
)");
  EXPECT_THAT(done.report.notes, ElementsAre(HasSubstr("'past_3' is 'past_1'")));
  ASSERT_FALSE(done.report.savings.empty());
  EXPECT_EQ(done.report.savings.front().rule, "equal-caches");
  EXPECT_EQ(done.report.savings.front().cache_bytes, 8 * 4 * kCacheTokens);
  EXPECT_EQ(done.report.before.equal_caches.size(), 1U);
  EXPECT_THAT(done.report.after.equal_caches, IsEmpty());

  const Rewritten again = RewriteIn(graph, To(Target::kKvshare));
  EXPECT_FALSE(again.report.changed);
  EXPECT_EQ(again.before, again.after);
}

TEST(EqualCachesRule, IsOfEveryTargetAndMayBeSkipped) {
  for (const auto& [name, target] : kTargets) {
    RewriteOptions options = To(target);
    EXPECT_TRUE(RewriteText(kThreeCaches, options).report.changed) << name;
    options.skip = {"equal-caches"};
    EXPECT_FALSE(RewriteText(kThreeCaches, options).report.changed) << name;
  }
}

TEST(EqualCachesRule, NothingIsDeclaredOfValuesThatWent) {
  Graph graph = GraphOf(kThreeCaches);
  RewriteOptions options = To(Target::kKvshare);
  options.skip = {"dead-nodes"};
  EXPECT_TRUE(RewriteIn(graph, options).report.changed);
  EXPECT_THAT(NamesIn(graph.Copy().graph().value_info()), IsEmpty());
}

TEST(EqualCachesRule, AFixedNumberOfRowsCounts) {
  const Rewritten done = RewriteText(WithText(kThreeCaches, "[B,C,8]", "[B,64,8]"), To(Target::kOrt));
  ASSERT_FALSE(done.report.savings.empty());
  EXPECT_EQ(done.report.savings.front().cache_bytes, 8 * 4 * 64);
}

// By what a cache is written does not matter.
struct Update {
  const char* name;
  const char* op;  // of past, place, new
};
class Updates : public testing::TestWithParam<Update> {};

TEST_P(Updates, OfOneKeyMakeCachesEqual) {
  std::string text = WithText(kThreeCaches, "present_1 = ScatterND(past_1, place_1, new_1)",
                              "present_1 = " + WithText(WithText(GetParam().op, "#", "1"), "@", "key"));
  text = WithText(text, "present_2 = ScatterND(past_2, place_2, key_2)",
                  "present_2 = " + WithText(WithText(GetParam().op, "#", "2"), "@", "key_2"));
  text = WithText(text, "present_3 = ScatterND(past_3, place_3, new_3)",
                  "present_3 = " + WithText(WithText(GetParam().op, "#", "3"), "@", "key"));
  EXPECT_THAT(EqualIn(text), ElementsAre("past_3 is past_1"));
}

INSTANTIATE_TEST_SUITE_P(
    Operators, Updates,
    testing::Values(Update{"ScatterElements", "ScatterElements(past_#, place_#, @) {axis=1}"},
                    Update{"ScatterND", "ScatterND(past_#, place_#, @)"},
                    Update{"TensorScatter", "TensorScatter(past_#, @, place_#) {axis=1, mode='linear'}"},
                    Update{"Concat", "Concat(past_#, @) {axis=1}"}, Update{"Where", "Where(place_#, @, past_#)"},
                    Update{"Microsoft", "com.microsoft.FusedScatter(past_#, @, place_#)"}),
    [](const auto& test) { return test.param.name; });

struct Different {
  const char* name;
  const char* output;  // of the line that differs
  const char* line;
};
class NearMisses : public testing::TestWithParam<Different> {};

TEST_P(NearMisses, AreCachesOfTheirOwn) {
  const std::string text = TwoLayersWith(GetParam().output, GetParam().line, kThreeCaches);
  EXPECT_THAT(EqualIn(text), IsEmpty());
  const Rewritten done = RewriteText(text, To(Target::kKvshare));
  EXPECT_EQ(done.before, done.after);
}

INSTANTIATE_TEST_SUITE_P(
    Lines, NearMisses,
    testing::Values(Different{"AnotherKey", "new_3", "new_3 = Mul(key, key_2)"},
                    Different{"AnotherOperator", "new_3", "new_3 = Add(key, key)"},
                    Different{"AnotherDomain", "new_3", "new_3 = com.microsoft.Mul(key, key)"},
                    Different{"AnotherScale", "new_3", "const scale f32[] = 2\nnew_3 = Mul(key, scale)"},
                    Different{"AnotherAttribute", "present_3",
                              "present_3 = ScatterND(past_3, place_3, new_3) {reduction='add'}"},
                    Different{"OtherRows", "rows_3", "rows_3 = Shape(past_3) {start=0, end=1}"},
                    Different{"OperandsSwapped", "place_3", "place_3 = Mod(rows_3, position)"},
                    Different{"AnOperandLess", "place_3", "place_3 = Mod(position)"},
                    Different{"OneMoreOutput", "new_3", "new_3, spare = Mul(key, key)"},
                    Different{"TheOtherOutput", "new_3", "spare, new_3 = Mul(key, key)"},
                    Different{"ReadsThePastTwice", "new_3", "new_3 = Mul(key, past_3)"},
                    Different{"IsNotHandedOn", "present_3", "present_3 = ScatterND(past_1, place_1, key_2)"},
                    Different{"OfADomainThatNobodyKnows", "new_3", "new_3 = other.Mul(key, key)"}),
    [](const auto& test) { return test.param.name; });

TEST(EqualCaches, NeedOneTypeAndShape) {
  for (const char* type : {"f16[B,C,8]", "f32[B,D,8]", "f32[B,C,16]", "f32[B,C,8,1]"})
    EXPECT_THAT(EqualIn(WithText(kThreeCaches, "input past_3 f32[B,C,8]", std::string("input past_3 ") + type)),
                IsEmpty())
        << type;
}

TEST(EqualCaches, NeedAnOutputThatHandsThemOn) {
  EXPECT_THAT(EqualIn(WithText(kThreeCaches, "output present_3 f32[B,C,8]\n", "")), IsEmpty());
  EXPECT_THAT(EqualIn(WithText(kThreeCaches, "present_3", "handed_3")), IsEmpty());
}

TEST(EqualCaches, AreNamedAsExportersNameThem) {
  for (const auto& [past, present] :
       {std::pair{"past_key_values.#.key", "present.#.key"}, std::pair{"past_key.#", "past_key.#_RetainedState"},
        std::pair{"past_conv.#", "present_conv.#"}}) {
    std::string text(kThreeCaches);
    for (const char* layer : {"1", "2", "3"})
      text = WithText(WithText(text, std::string("present_") + layer, WithText(present, "#", layer)),
                      std::string("past_") + layer, WithText(past, "#", layer));
    EXPECT_THAT(EqualIn(text), ElementsAre(WithText(past, "#", "3") + " is " + WithText(past, "#", "1")));
  }
}

TEST(EqualCaches, EqualConstantsAreOne) {
  const std::string scaled =
      WithText(WithText(kThreeCaches, "new_1 = Mul(key, key)", "const scale_1 f32[2] = 2 3\nnew_1 = Mul(key, scale_1)"),
               "new_3 = Mul(key, key)", "const scale_3 f32[2] = 2 3\nnew_3 = Mul(key, scale_3)");
  EXPECT_THAT(EqualIn(scaled), ElementsAre("past_3 is past_1"));
  EXPECT_THAT(EqualIn(WithText(scaled, "scale_3 f32[2] = 2 3", "scale_3 f32[2] = 2 4")), IsEmpty());
  EXPECT_THAT(EqualIn(WithText(scaled, "scale_3 f32[2] = 2 3", "scale_3 f32[1,2] = 2 3")), IsEmpty());
  // Large ones are not compared.
  EXPECT_THAT(EqualIn(WithText(WithText(scaled, "scale_1 f32[2]", "scale_1 f32[100000]"), "scale_3 f32[2]",
                               "scale_3 f32[100000]")),
              IsEmpty());
  // A constant that the caller may give is an input.
  EXPECT_THAT(EqualIn(WithText(scaled, "const scale_3", "input scale_3 f32[2]\nconst scale_3")), IsEmpty());
}

TEST(EqualCaches, RandomValuesAreNotEqual) {
  for (const char* random :
       {"Bernoulli(key)", "RandomNormalLike(key)", "RandomUniformLike(key)", "Multinomial(key)",
        "Dropout(key, ratio, training)", "com.microsoft.BiasDropout(key, key)", "com.microsoft.BitmaskDropout(key)",
        "com.microsoft.BitmaskBiasDropout(key)", "com.microsoft.Sampling(key)", "com.microsoft.PagedAttention(key)",
        "RandomNormal() {shape=[2,3]}", "RandomUniform() {shape=[2,3]}"}) {
    const std::string text = WithText(WithText(kThreeCaches, "new_1 = Mul(key, key)", std::string("new_1 = ") + random),
                                      "new_3 = Mul(key, key)", std::string("new_3 = ") + random) +
                             "input ratio f32[]\ninput training bool[]\n";
    EXPECT_THAT(EqualIn(text), IsEmpty()) << random;
    // Drawn once, it is one value.
    EXPECT_THAT(EqualIn(WithText(text, std::string("new_3 = ") + random, "new_3 = Identity(new_1)")),
                ElementsAre("past_3 is past_1"))
        << random;
  }
  // Dropout drops on request; versions before 7, unless they are told not to.
  onnx::ModelProto dropping = *ParseTextGraph(WithText(kThreeCaches, "Mul(key, key)", "Dropout(key)"));
  EXPECT_THAT(EqualIn(dropping), ElementsAre("past_3 is past_1"));
  dropping.mutable_opset_import(0)->set_version(6);
  EXPECT_THAT(EqualIn(dropping), IsEmpty());
}

// As the keys of an encoder: they begin with what another model made, of each layer its own.
TEST(EqualCaches, AreWrittenInEachStep) {
  for (const char* handed : {"Identity(#)", "Transpose(#) {perm=[0,1,2]}", "Slice(#, two, two)"}) {
    std::string text = WithText(kThreeCaches, "ScatterND(past_1, place_1, new_1)", WithText(handed, "#", "past_1"));
    text = WithText(text, "ScatterND(past_3, place_3, new_3)", WithText(handed, "#", "past_3"));
    EXPECT_THAT(EqualIn(text), IsEmpty()) << handed;
  }
}

// What is written into one cache may hang on another: both are equal, or neither is.
TEST(EqualCaches, MayCountInEachOther) {
  std::string text = WithText(kThreeCaches, "rows_3 = Shape(past_3)", "rows_3 = Shape(past_1)");
  EXPECT_THAT(EqualIn(text), ElementsAre("past_3 is past_1"));
  text = WithText(kThreeCaches, "rows_3 = Shape(past_3)", "rows_3 = Shape(past_2)");
  EXPECT_THAT(EqualIn(text), IsEmpty());
  // Each is what was made of the other.
  text = WithText(kThreeCaches, "(past_1, place_1, new_1)", "(past_3, place_1, new_1)");
  text = WithText(text, "(past_3, place_3, new_3)", "(past_1, place_3, new_3)");
  EXPECT_THAT(EqualIn(text), ElementsAre("past_3 is past_1"));
}

// One key and value for two layers, which write it into caches of their own; the keys are the values.
constexpr std::string_view kJoined = R"(
input query f32[B,4,S,8]
input key f32[B,2,S,8]
input past_k0 f32[B,2,P,8]
input past_v0 f32[B,2,P,8]
input past_k1 f32[B,2,P,8]
input past_v1 f32[B,2,P,8]
output out f32[B,4,S,8]
output present_k0 f32[B,2,T,8]
output present_v0 f32[B,2,T,8]
output present_k1 f32[B,2,T,8]
output present_v1 f32[B,2,T,8]
present_k0 = Concat(past_k0, key) {axis=2}
present_v0 = Concat(past_v0, key) {axis=2}
out0 = Attention(query, present_k0, present_v0)
present_k1 = Concat(past_k1, key) {axis=2}
present_v1 = Concat(past_v1, key) {axis=2}
out = Attention(out0, present_k1, present_v1)
)";

TEST(EqualCaches, KeysOfALayerAreNoValues) {
  EXPECT_THAT(EqualIn(kJoined), ElementsAre("past_k1 is past_k0", "past_v1 is past_v0"));
  EXPECT_THAT(TextAfter(kJoined, To(Target::kOrt)), HasSubstr("out = Attention(out0, present_k0, present_v0)"));
  const std::string inside = WithText(
      WithText(kJoined, "present_k0 = Concat(past_k0, key) {axis=2}\npresent_v0 = Concat(past_v0, key) {axis=2}\n", ""),
      "out0 = Attention(query, present_k0, present_v0)",
      "out0, present_k0, present_v0 = Attention(query, key, key, _, past_k0, past_v0)");
  EXPECT_THAT(EqualIn(inside), IsEmpty());
}

// Cache i holds what cache i + 1 does, and the last one another key: each step back tells one more apart.
std::string Chain(int caches) {
  std::string text = "input key f32[B,8]\n";
  for (int i = 0; i < caches; ++i)
    text += fmt::format("input past_{0} f32[B,8]\noutput present_{0} f32[B,8]\npresent_{0} = {1}\n", i,
                        i + 1 < caches ? fmt::format("Add(key, past_{})", i + 1) : "Mul(key, key)");
  return text;
}

TEST(EqualCaches, AreLookedForInSoManyRoundsOnly) {
  EXPECT_THAT(EqualIn(Chain(5)), IsEmpty());
  const std::string twice = Chain(5) + "input past_x f32[B,8]\noutput present_x f32[B,8]\npresent_x = Mul(key, key)\n";
  EXPECT_THAT(EqualIn(twice), ElementsAre("past_x is past_4"));
  const std::string long_one =
      Chain(2 * kMostRounds) + "input past_x f32[B,8]\noutput present_x f32[B,8]\npresent_x = Mul(key, key)\n";
  EXPECT_THAT(EqualIn(long_one), IsEmpty());
}

TEST(EqualCachesRule, WhoReadsACacheBeforeItIsWrittenReadsTheOther) {
  const std::string text = WithText(kThreeCaches, "out = Identity(out_3)", "out = Add(out_3, past_3)");
  EXPECT_THAT(TextAfter(text, To(Target::kKvshare)), HasSubstr("out = Add(out_3, past_1)"));
}

TEST(EqualCachesRule, AnOutputThatReadsAPresentStays) {
  const std::string text = std::string(kThreeCaches) + "output copy f32[B,C,8]\ncopy = Identity(present_3)\n";
  EXPECT_THAT(TextAfter(text, To(Target::kKvshare)), HasSubstr("copy = Identity(present_1)"));
}

TEST(EqualCachesRule, TheOneThatIsWrittenFirstStays) {
  std::string text = WithText(kThreeCaches, "input past_1 f32[B,C,8]\n", "");
  text = WithText(text, "input past_3 f32[B,C,8]\n", "input past_3 f32[B,C,8]\ninput past_1 f32[B,C,8]\n");
  EXPECT_THAT(EqualIn(text), ElementsAre("past_3 is past_1"));
}

TEST(EqualCachesRule, ACacheThatIsAnOutputItselfStays) {
  const Rewritten done = RewriteText(std::string(kThreeCaches) + "output past_3 f32[B,C,8]\n", To(Target::kKvshare));
  EXPECT_EQ(done.before, done.after);
  EXPECT_EQ(done.CodedDeclineOf("equal-caches"), "value-is-output: is still read by graph output 'past_3'");
}

// An If whose branches hand on `value`.
onnx::NodeProto Capturing(const std::string& value) {
  onnx::NodeProto node;
  node.set_op_type("If");
  node.set_name("choice");
  node.add_input("condition");
  node.add_output("chosen");
  for (const char* name : {"then_branch", "else_branch"}) {
    auto& branch = *node.add_attribute();
    branch.set_name(name);
    branch.set_type(onnx::AttributeProto::GRAPH);
    auto& inside = *branch.mutable_g()->add_node();
    inside.set_op_type("Identity");
    inside.add_input(value);
    inside.add_output(std::string("inside_") + name);
    branch.mutable_g()->add_output()->set_name(inside.output(0));
  }
  return node;
}

onnx::ModelProto WithCapture(const std::string& value) {
  onnx::ModelProto model =
      *ParseTextGraph(std::string(kThreeCaches) + "input condition bool[]\noutput chosen f32[N]\n");
  *model.mutable_graph()->add_node() = Capturing(value);
  return model;
}

TEST(EqualCachesRule, ACacheThatABodyReadsStays) {
  Graph graph = *Graph::Make(WithCapture("past_3"), ".");
  const Rewritten done = RewriteIn(graph, To(Target::kKvshare));
  EXPECT_EQ(done.before, done.after);
  EXPECT_EQ(done.CodedDeclineOf("equal-caches"), "value-is-captured: is still read by a body of If 'choice'");
}

TEST(EqualCachesRule, ACacheThatANodeReadsBesideItsBodyStays) {
  onnx::ModelProto model = WithCapture("past_3");
  model.mutable_graph()->mutable_node()->rbegin()->set_input(0, "past_3");
  Graph graph = *Graph::Make(std::move(model), ".");
  const Rewritten done = RewriteIn(graph, To(Target::kKvshare));
  EXPECT_EQ(done.before, done.after);
  EXPECT_EQ(done.CodedDeclineOf("equal-caches"), "value-is-captured: is still read by a body of If 'choice'");
}

TEST(EqualCachesRule, ACopyThatABodyReadsIsMadeOfTheOtherCache) {
  Graph graph = *Graph::Make(WithCapture("read_3"), ".");
  const Rewritten done = RewriteIn(graph, To(Target::kKvshare));
  EXPECT_TRUE(done.report.changed);
  const std::string text = ToText(graph.Copy());
  EXPECT_THAT(text, HasSubstr("read_3 = Transpose(present_1)"));
  EXPECT_THAT(text, HasSubstr("scores_3 = MatMul(out_1, read_1)"));
  EXPECT_THAT(text, testing::Not(HasSubstr("present_3")));
}

// `text` as a function of the model: its inputs, outputs and nodes.
onnx::FunctionProto FunctionOf(const std::string& name, std::string_view text, int64_t opset = 24) {
  const onnx::ModelProto model = *ParseTextGraph(text);
  onnx::FunctionProto function;
  function.set_domain("local");
  function.set_name(name);
  for (const std::string& input : NamesIn(model.graph().input())) function.add_input(input);
  for (const std::string& output : NamesIn(model.graph().output())) function.add_output(output);
  *function.mutable_node() = model.graph().node();
  function.add_opset_import()->set_version(opset);
  return function;
}

constexpr std::string_view kWrite = R"(
input data f32[A]
input place i64[A]
input new f32[A]
output written f32[A]
all = Shape(data)
far = Add(place, all)
written = ScatterND(data, far, new)
)";

// kThreeCaches, whose caches 1 and 3 are written by calls of `first` and `second`.
onnx::ModelProto WithCalls(const onnx::FunctionProto& first, const onnx::FunctionProto& second) {
  std::string text = WithText(kThreeCaches, "present_1 = ScatterND(", "present_1 = local." + first.name() + "(");
  text = WithText(text, "present_3 = ScatterND(", "present_3 = local." + second.name() + "(");
  onnx::ModelProto model = *ParseTextGraph("import local 1\n" + text);
  *model.add_functions() = first;
  if (second.name() != first.name()) *model.add_functions() = second;
  return model;
}

TEST(EqualCaches, MayBeWrittenByFunctions) {
  const auto write = FunctionOf("Write", kWrite);
  EXPECT_THAT(EqualIn(WithCalls(write, write)), ElementsAre("past_3 is past_1"));
  EXPECT_THAT(EqualIn(WithCalls(write, FunctionOf("Same", kWrite))), ElementsAre("past_3 is past_1"));
  EXPECT_THAT(EqualIn(WithCalls(write, FunctionOf("Other", WithText(kWrite, "Add(", "Sub(")))), IsEmpty());
  EXPECT_THAT(EqualIn(WithCalls(write, FunctionOf("Older", kWrite, 18))), IsEmpty());
  const auto random = FunctionOf("Random", WithText(kWrite, "far = Add(place, all)", "far = Bernoulli(place)"));
  EXPECT_THAT(EqualIn(WithCalls(random, random)), IsEmpty());
  const auto recursive = FunctionOf("Loop", WithText(kWrite, "Add(place, all)", "local.Loop(data, place, new)"));
  EXPECT_THAT(EqualIn(WithCalls(recursive, recursive)), IsEmpty());
  const auto open = FunctionOf("Open", WithText(kWrite, "Add(place, all)", "Add(place, from_nowhere)"));
  EXPECT_THAT(EqualIn(WithCalls(open, open)), IsEmpty());
}

TEST(EqualCaches, AFunctionIsWhatItsNodesAre) {
  const auto write = FunctionOf("Write", kWrite);
  onnx::ModelProto model = WithCalls(write, write);
  auto& nodes = *model.mutable_graph()->mutable_node();
  for (int i = 0; i < nodes.size(); ++i)
    if (nodes[i].output(0) == "present_3") {
      const onnx::ModelProto inlined =
          *ParseTextGraph("all = Shape(past_3)\nfar = Add(place_3, all)\npresent_3 = ScatterND(past_3, far, new_3)\n");
      nodes[i] = inlined.graph().node(2);
      *nodes.Add() = inlined.graph().node(0);
      *nodes.Add() = inlined.graph().node(1);
    }
  EXPECT_THAT(EqualIn(model), ElementsAre("past_3 is past_1"));
}

TEST(EqualCaches, AFunctionTakesItsAttributesFromTheCall) {
  auto write = FunctionOf("Write", kWrite);
  auto& shape = *write.mutable_node(0);
  auto& start = *shape.add_attribute();
  start.set_name("start");
  start.set_type(onnx::AttributeProto::INT);
  start.set_ref_attr_name("first");
  write.add_attribute("first");
  onnx::ModelProto model = WithCalls(write, write);
  EXPECT_THAT(EqualIn(model), ElementsAre("past_3 is past_1"));
  auto& nodes = *model.mutable_graph()->mutable_node();
  const auto call = [&](const std::string& output) -> Node& {
    return *std::ranges::find_if(nodes, [&](const Node& node) { return node.output(0) == output; });
  };
  SetInt(call("present_3"), "first", 1);
  EXPECT_THAT(EqualIn(model), IsEmpty());
  SetInt(call("present_1"), "first", 1);
  EXPECT_THAT(EqualIn(model), ElementsAre("past_3 is past_1"));
  // One that the function has itself, where the call gives none.
  call("present_1").clear_attribute();
  auto& function = *model.mutable_functions(0);
  function.clear_attribute();
  onnx::NodeProto standard;
  SetInt(standard, "first", 1);
  *function.add_attribute_proto() = standard.attribute(0);
  EXPECT_THAT(EqualIn(model), ElementsAre("past_3 is past_1"));
}

// A whole layer as a function: its cache goes, and the function writes what it reads for itself.
TEST(EqualCachesRule, ALayerThatIsAFunctionReadsTheOtherCache) {
  const auto layer = FunctionOf("Layer", std::string(kWrite) + "input query f32[A]\noutput hidden f32[A]\n" +
                                             "hidden = MatMul(query, written)\n");
  std::string text = WithText(kThreeCaches, "present_1 = ScatterND(past_1, place_1, new_1)",
                              "present_1, hidden_1 = local.Layer(past_1, place_1, new_1, query)");
  text = WithText(text, "present_3 = ScatterND(past_3, place_3, new_3)",
                  "present_3, hidden_3 = local.Layer(past_3, place_3, new_3, hidden_1)");
  text = WithText(text, "out = Identity(out_3)", "out = Identity(hidden_3)");
  onnx::ModelProto model = *ParseTextGraph("import local 1\n" + text);
  *model.add_functions() = layer;
  Graph graph = *Graph::Make(std::move(model), ".");
  EXPECT_TRUE(RewriteIn(graph, To(Target::kKvshare)).report.changed);
  EXPECT_THAT(ToText(graph.Copy()), HasSubstr("present_3, hidden_3 = local.Layer(past_1, place_1, new_3, hidden_1)"));
}

}  // namespace
}  // namespace kvshare::graph
