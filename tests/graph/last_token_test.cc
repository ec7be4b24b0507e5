// What stands against computing the last token alone behind the last own keys, and how shapes follow where nothing
// does.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graph/rewrite_graph.h"
#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

RewriteOptions FastPrefill() {
  RewriteOptions options;
  options.target = Target::kOrt;
  options.fast_prefill = true;
  return options;
}

// kTwoLayers, whose logits are `lines`.
std::string EndingIn(const std::string& lines) { return TwoLayersWith("logits", lines); }

struct NearMiss {
  const char* name;
  std::string text;
  const char* code;
  const char* reason;
};

class FastPrefillDeclines : public testing::TestWithParam<NearMiss> {};

TEST_P(FastPrefillDeclines, WithAReasonAndACode) {
  Graph graph = GraphOf(GetParam().text);
  const auto report = RewriteGraph(graph, FastPrefill());
  ASSERT_TRUE(report.ok()) << report.status().message();
  std::vector<std::string> found;
  for (const auto& outcome : report->outcomes)
    if (outcome.rule == "fast-prefill") found.push_back(outcome.code + ": " + outcome.reason);
  EXPECT_THAT(found, testing::ElementsAre(std::string(GetParam().code) + ": " + GetParam().reason));
  EXPECT_THAT(ToText(graph.Copy()), testing::Not(testing::HasSubstr("GatherND")));
}

std::vector<NearMiss> NearMisses() {
  const std::string own =
      "out0, present_k, present_v = com.microsoft.GroupQueryAttention(q0, k0, k0, past_k, past_v, "
      "seqlens, total, cos_table, sin_table";
  return {
      {"SoftmaxOverTokens", EndingIn("logits = Softmax(out1) {axis=1}"), "tokens-mixed",
       "Softmax 'logits': is not known to compute each token on its own"},
      {"AnOperatorOfAnotherDomain", EndingIn("import other 1\nlogits = other.Tanh(out1)"), "tokens-mixed",
       "Tanh 'logits': is not known to compute each token on its own"},
      {"ProductOfTokens", EndingIn("logits = MatMul(out1, out1)"), "tokens-mixed",
       "MatMul 'logits': is not known to compute each token on its own"},
      {"ARowForEachToken", EndingIn("const rows f32[5,32] = 1\nlogits = Add(out1, rows)"), "tokens-mixed",
       "Add 'logits': constant 'rows' has a row for each token"},
      {"SlicedTokens", EndingIn("logits = Slice(out1, one, two, one)"), "tokens-mixed",
       "Slice 'logits': is not known to compute each token on its own"},
      {"TokensIntoTheBatch", EndingIn("const flat i64[3] = 1 -1 32\nlogits = Reshape(out1, flat)"), "tokens-mixed",
       "Reshape 'logits': is not known to compute each token on its own"},
      {"TwoAxes", EndingIn("turned = Transpose(out1) {perm=[0,2,1]}\nlogits = Add(out1, turned)"), "tokens-mixed",
       "'out1' is read as if its tokens lay along two axes"},
      {"AnotherOutput", EndingIn("output other f32[B,S,32]\nother = Identity(out1)\nlogits = Identity(out1)"),
       "value-is-output", "graph outputs 'logits' and 'other' both depend on its output"},
      {"ItsExtents",
       EndingIn("n = Shape(out1)\nzeros = ConstantOfShape(n)\nlogits = Add(out1, out1)\noutput zeros f32[B,S,32]"),
       "value-is-output", "graph outputs 'logits' and 'zeros' both depend on its output"},
      {"QuerySeqlens",
       TwoLayersWith("out0", own + ", _, _, _, _, _, _, _, seqlens) {num_heads=4, kv_num_heads=1, "
                                   "scale=1.0, do_rotary=1, local_window_size=4}"),
       "own-lengths", "GroupQueryAttention 'out0': has query_seqlens"},
      {"NoLayerBehind", EndingIn("logits = Identity(out0)"), "nothing-shared", "no graph output depends on its output"},
  };
}

std::string NameOfMiss(const testing::TestParamInfo<NearMiss>& miss) { return miss.param.name; }

INSTANTIATE_TEST_SUITE_P(Graphs, FastPrefillDeclines, testing::ValuesIn(NearMisses()), NameOfMiss);

TEST(FastPrefill, CutsBehindTheLastOwnKeys) {
  Graph graph = GraphOf(kTwoLayers);
  ASSERT_TRUE(RewriteGraph(graph, FastPrefill()).ok());
  const std::string text = ToText(graph.Copy());
  EXPECT_THAT(text, testing::HasSubstr("out0_last_token = GatherND(out0, logits_last) {batch_dims=1}"));
  EXPECT_THAT(text, testing::HasSubstr("out1 = com.microsoft.GroupQueryAttention(out0_last_token,"));
  EXPECT_EQ(graph.Shape("logits"), (std::vector<int64_t>{-1, 1, 32}));
}

TEST(FastPrefill, AShapeThatNamesTheTokensTakesAnyNumber) {
  Graph graph =
      GraphOf(EndingIn("batch = Shape(input_ids) {start=0, end=1}\nconst heads i64[2] = 4 8\n"
                       "view = Concat(batch, S, heads) {axis=0}\nfour = Reshape(out1, view)\n"
                       "turned = Transpose(four) {perm=[0,2,1,3]}\nback = Transpose(turned) {perm=[0,2,1,3]}\n"
                       "logits = Reshape(back, fold)"));
  const auto report = RewriteGraph(graph, FastPrefill());
  ASSERT_TRUE(report.ok());
  const std::string text = ToText(graph.Copy());
  EXPECT_THAT(text, testing::HasSubstr("four = Reshape(out1, four_shape)"));
  EXPECT_EQ(graph.Ints("four_shape"), (std::vector<int64_t>{0, 0, 4, 8}));
  EXPECT_THAT(text, testing::Not(testing::HasSubstr("view = ")));
}

}  // namespace
}  // namespace kvshare::graph
