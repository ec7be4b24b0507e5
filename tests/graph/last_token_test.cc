// What stands against computing the last token alone behind the last own keys, and how shapes follow where nothing
// does.
#include <fmt/format.h>
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

// kTwoLayers, whose second layer is of upstream's shared form.
std::string UpstreamsForm(const std::string& outputs, const std::string& seqlens, const std::string& logits) {
  return TwoLayersWith("logits", logits,
                       TwoLayersWith("out1", "const empty f32[1,0,8] = 0\n" + outputs +
                                                 " = com.microsoft.GroupQueryAttention(out0, empty, empty, present_k, "
                                                 "present_v, " +
                                                 seqlens +
                                                 ", total) {num_heads=4, kv_num_heads=1, scale=1.0, "
                                                 "local_window_size=4}"));
}

std::string Replaced(std::string text, std::string_view from, std::string_view to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

constexpr const char* kOwnAttention =
    "out0, present_k, present_v = Attention(q0, k0, k0, bias, past_k, past_v) {q_num_heads=4, kv_num_heads=1, "
    "scale=1.0, "
    "is_causal=1}";

std::string WithOwnAttention(const std::string& text) { return TwoLayersWith("out0", kOwnAttention, text); }

struct NearMiss {
  const char* name;
  std::string text;
  const char* code;
  const char* reason;
};

class FastPrefillDeclines : public testing::TestWithParam<NearMiss> {};

TEST_P(FastPrefillDeclines, WithAReasonAndACode) {
  Graph graph = GraphOf(GetParam().text);
  RewriteOptions options = FastPrefill();
  options.skip = {"own-attention"};
  const auto report = RewriteGraph(graph, options);
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
      {"TokensThatAProductTurns",
       EndingIn("const weights f32[4,8] = 1\nlogits = com.microsoft.FusedMatMul(out1, weights) {transA=1, transB=1}"),
       "tokens-mixed", "FusedMatMul 'logits': is not known to compute each token on its own"},
      {"WeightsOfOneAxis",
       EndingIn("const three i64[1] = 3\nconst weights f32[1] = 1\ncolumn = Unsqueeze(out1, three)\n"
                "logits = MatMul(column, weights)"),
       "tokens-mixed", "MatMul 'logits': is not known to compute each token on its own"},
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
      {"NoOutputBehind", EndingIn("logits = Identity(out0)"), "nothing-shared",
       "no graph output depends on its output"},
      {"NoLayerBehind", TwoLayersWith("out1", "out1 = Identity(out0)"), "nothing-shared",
       "no layer that borrows comes after the last that makes keys"},
      {"LogitsOfTwoAxes", Replaced(std::string(kTwoLayers), "logits f32[B,S,32]", "logits f32[B,32]"), "shape-unknown",
       "graph output 'logits' is not known to be [B, S, V]"},
      {"APresentIsRead", UpstreamsForm("out1, pk1, pv1", "seqlens", "logits = Add(out1, pk1)"), "output-is-read",
       "GroupQueryAttention 'out1': output 1 'pk1' is read"},
      {"AWindowAtTheFirstKey",
       TwoLayersWith("out1",
                     "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=1, scale=1.0, "
                     "local_window_size=4}"),
       "window-attribute", "Attention 'out1': has local_window_size, which counts columns"},
      {"OtherLengths", UpstreamsForm("out1", "other", "logits = Identity(out1)\nother = Cast(last) {to=6}"),
       "lengths-differ", "GroupQueryAttention 'out1': counts other lengths than GroupQueryAttention 'out0'"},
      {"LengthsBesideAttention", WithOwnAttention(UpstreamsForm("out1", "seqlens", "logits = Identity(out1)")),
       "lengths-differ", "GroupQueryAttention 'out1': counts lengths, Attention 'out0' does not"},
      {"NoKeyMask",
       WithOwnAttention(TwoLayersWith("out1",
                                      "import kvshare 1\nout1 = kvshare.Attention(rotated, present_k, present_v) "
                                      "{q_num_heads=4, kv_num_heads=1, scale=1.0, is_causal=1}")),
       "mask-unknown", "Attention 'out1': which tokens are kept is not known as for the other layers"},
      {"AValueOfUnknownShape",
       EndingIn("import other 1\nodd = other.Odd(q0)\noutput sum f32[B]\nsum = ReduceSum(odd, one)\n"
                "const weights f32[32] = 1\n"
                "logits = com.microsoft.SkipLayerNormalization(out1, odd, weights) {epsilon=0.1}"),
       "shape-unknown", "SkipLayerNormalization 'logits': the shape of 'odd' is not known"},
      {"OneRowForAllSequences", EndingIn("input rows f32[1,S,32]\nlogits = Add(out1, rows)"), "tokens-mixed",
       "Add 'logits': 'rows' is one for all sequences, whose last tokens may differ"},
      {"TheNumberOfTokens",
       EndingIn("const begin0 i64[1] = 0\nn = Shape(out1) {start=1, end=2}\nlogits = Slice(out1, begin0, n, two)"),
       "value-is-read", "'out1' is read by Shape 'n' for all tokens"},
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

// They read all tokens of another value too, and would fail beside one token.
TEST(FastPrefill, ReadersThatNoOutputNeedsGo) {
  Graph graph =
      GraphOf(EndingIn("unread = Add(out1, out0)\nunread1 = Neg(unread)\nstays = Neg(out0)\nlogits = Identity(out1)"));
  ASSERT_TRUE(RewriteGraph(graph, FastPrefill()).ok());
  EXPECT_THAT(ToText(graph.Copy()), testing::AllOf(testing::HasSubstr("GatherND"), testing::HasSubstr("stays = "),
                                                   testing::Not(testing::HasSubstr("unread"))));
}

TEST(FastPrefill, LogitsOfTheLastTokenAloneAreNotEnough) {
  Graph graph = GraphOf(Replaced(EndingIn("const begin0 i64[1] = -1\nconst end0 i64[1] = 9223372036854775807\n"
                                          "taken = Slice(out1, begin0, end0, one)\nlogits = Identity(taken)"),
                                 "logits f32[B,S,32]", "logits f32[B,1,32]"));
  ASSERT_TRUE(RewriteGraph(graph, FastPrefill()).ok());
  EXPECT_THAT(ToText(graph.Copy()), testing::HasSubstr("out1 = com.microsoft.GroupQueryAttention(out0_last_token,"));
  EXPECT_FALSE(RewriteGraph(graph, FastPrefill())->changed);
}

TEST(FastPrefill, AShapeMadeOfTheQuerysOwnExtentsIsReplaced) {
  Graph graph =
      GraphOf(EndingIn("n = Shape(out1) {start=0, end=2}\nconst heads i64[2] = 4 8\n"
                       "view = Concat(n, heads) {axis=0}\nfour = Reshape(out1, view)\n"
                       "logits = Reshape(four, fold)"));
  ASSERT_TRUE(RewriteGraph(graph, FastPrefill()).ok());
  EXPECT_EQ(graph.Ints("four_shape"), (std::vector<int64_t>{0, 0, 4, 8}));
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

// kTwoLayers, whose second layer is followed by `layers` of its like. Nothing but inputs and outputs is declared.
std::string DeepModel(int layers) {
  std::string text =
      "const empty f32[1,0,8] = 0\nconst scale f32[32] = 1\nconst gate f32[32,32] = 0.5\nhidden0 = Identity(out1)\n";
  for (int i = 0; i < layers; ++i)
    text += fmt::format(
        "norm{0} = RMSNormalization(hidden{0}, scale) {{axis=-1}}\nquery{0} = MatMul(norm{0}, gate)\n"
        "shared{0} = com.microsoft.GroupQueryAttention(query{0}, empty, empty, present_k, present_v, seqlens, total) "
        "{{num_heads=4, kv_num_heads=1, scale=1.0}}\n"
        "sum{0} = Add(hidden{0}, shared{0})\nhidden{1} = Mul(sum{0}, one_half)\n",
        i, i + 1);
  return EndingIn("const one_half f32[] = 0.5\n" + text + fmt::format("logits = Identity(hidden{})", layers));
}

TEST(FastPrefill, CutsADeepModelThatDeclaresNoShapes) {
  Graph graph = GraphOf(DeepModel(60));
  RewriteOptions options = FastPrefill();
  options.target = Target::kKvshare;
  const auto report = RewriteGraph(graph, options);
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_THAT(report->outcomes, testing::Contains(testing::AllOf(testing::Field(&RuleOutcome::rule, "fast-prefill"),
                                                                 testing::Field(&RuleOutcome::applied, true))));
  EXPECT_THAT(ToText(graph.Copy()), testing::HasSubstr("GatherND(out0, logits_last)"));
}

TEST(FastPrefill, TakesAProductOfTurnedWeightsAsOnnxRuntimeWritesIt) {
  Graph graph = GraphOf(
      EndingIn("const weights f32[32,32] = 1\nlarge = com.microsoft.FusedMatMul(out1, weights) {alpha=0.5, transA=0, "
               "transB=1}\nlogits = Identity(large)"));
  ASSERT_TRUE(RewriteGraph(graph, FastPrefill()).ok());
  EXPECT_THAT(ToText(graph.Copy()), testing::HasSubstr("GatherND(out0, logits_last)"));
}

// Each value is read twice by the next: followed one path at a time they would never end.
TEST(FastPrefill, RanksOfManySharedNodesAreReadOnce) {
  std::string text = "x0 = Identity(out1)\n";
  for (int i = 0; i < 20000; ++i) text += fmt::format("x{} = Add(x{}, x{})\n", i + 1, i, i);
  Graph graph = GraphOf(EndingIn(text + "logits = Identity(x20000)"));
  ASSERT_TRUE(RewriteGraph(graph, FastPrefill()).ok());
  EXPECT_THAT(ToText(graph.Copy()), testing::HasSubstr("GatherND(out0, logits_last)"));
}

}  // namespace
}  // namespace kvshare::graph
