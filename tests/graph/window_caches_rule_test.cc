// What keeps a cache from holding its window alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graph/rewrite_graph.h"
#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

RewriteOptions WindowCaches() {
  RewriteOptions options;
  options.target = Target::kKvshare;
  options.window_caches = 3;
  return options;
}

std::string Own(const std::string& past_k, const std::string& attributes) {
  return TwoLayersWith("out0", "out0, present_k, present_v = com.microsoft.GroupQueryAttention(q0, k0, k0, " + past_k +
                                   ", past_v, seqlens, total, cos_table, sin_table) {num_heads=4, kv_num_heads=1, "
                                   "scale=1.0, do_rotary=1, local_window_size=4" +
                                   attributes + "}");
}

// Two own layers without a mask: one with a window of 4 keys, then one of `attributes`.
std::string Unmasked(const std::string& attributes) {
  const std::string heads = " {q_num_heads=4, kv_num_heads=1, is_causal=1";
  return "value near f32[B,S,32]\ninput hidden f32[B,S,32]\ninput new f32[B,S,8]\ninput past_k f32[B,1,P,8]\ninput "
         "past_v f32[B,1,P,8]\n"
         "input past_k1 f32[B,1,P,8]\ninput past_v1 f32[B,1,P,8]\noutput far f32[B,S,32]\n"
         "output present_k f32[B,1,T,8]\noutput present_v f32[B,1,T,8]\noutput present_k1 f32[B,1,T,8]\n"
         "output present_v1 f32[B,1,T,8]\n"
         "near, present_k, present_v = Attention(hidden, new, new, _, past_k, past_v)" +
         heads + ", left_window_size=3}\nfar, present_k1, present_v1 = Attention(near, new, new, _, past_k1, past_v1)" +
         heads + attributes + "}\n";
}

struct NearMiss {
  const char* name;
  std::string text;
  std::string skip;
  const char* reason;
};

class WindowCachesDeclines : public testing::TestWithParam<NearMiss> {};

TEST_P(WindowCachesDeclines, WithAReason) {
  Graph graph = GraphOf(GetParam().text);
  RewriteOptions options = WindowCaches();
  if (!GetParam().skip.empty()) options.skip = {GetParam().skip};
  const auto report = RewriteGraph(graph, options);
  ASSERT_TRUE(report.ok()) << report.status().message();
  std::vector<std::string> found;
  for (const auto& outcome : report->outcomes)
    if (outcome.rule == "window-caches") found.push_back(outcome.code + ": " + outcome.reason);
  EXPECT_THAT(found, testing::ElementsAre(GetParam().reason));
  EXPECT_THAT(ToText(graph.Copy()), testing::Not(testing::HasSubstr("window_cache_rows")));
}

std::vector<NearMiss> NearMisses() {
  return {
      {"NotInKvshare", std::string(kTwoLayers), "own-layers",
       "source-form: is not kvshare::GroupQueryAttention, which alone has such a cache"},
      {"OnnxRuntimesOwn", TwoLayersWith("out1", "out1 = Identity(out0)", Own("past_k", ", sliding_window_cache=1")), "",
       "already-converted: has sliding_window_cache, whose rows its past tells"},
      {"AnEndlessWindow",
       TwoLayersWith("out1", "out1 = Identity(out0)",
                     TwoLayersWith("out0",
                                   "out0, present_k, present_v = com.microsoft.GroupQueryAttention(q0, k0, k0, "
                                   "past_k, past_v, seqlens, total) {num_heads=4, kv_num_heads=1, "
                                   "local_window_size=3000000000}")),
       "", "window-attribute: has a window of 3000000000 keys"},
      {"APastThatIsMade", Own("made", "") + "made = Identity(past_k)\n", "",
       "source-cache: its past 'made' is no graph input"},
      {"ABorrowerWithAMask", std::string(kTwoLayers), "shared-attention",
       "source-form: is not kvshare::GroupQueryAttention, which alone has such a cache"},
      {"ABorrowerOfAnotherWindow",
       TwoLayersWith("out1",
                     "import kvshare 1\nout1 = kvshare.GroupQueryAttention(out0, _, _, _, _, seqlens, total, _, _, _, "
                     "_, _, _, _, _, _, _, present_k, present_v) {num_heads=4, kv_num_heads=1, scale=1.0, "
                     "local_window_size=2}"),
       "",
       "source-form: layer 1 borrows its cache and has window 2; needs kvshare::GroupQueryAttention with external_key "
       "and window 4"},
      {"APastWhoseRowsAreCounted",
       std::string(kTwoLayers) + "output rows i64[1]\nrows = Shape(past_v) {start=2, end=3}\n", "",
       "source-cache: its past 'past_v' is also read by Shape 'rows'"},
      {"APastWhoseRowsAreGathered",
       std::string(kTwoLayers) + "output rows i64[1]\nshape = Shape(past_k)\nrows = Gather(shape, two)\n", "",
       "source-cache: its past 'past_k' is also read by Shape 'shape'"},
      {"APastWhoseShapeIsRead", std::string(kTwoLayers) + "output shape i64[4]\nshape = Shape(past_k)\n", "",
       "source-cache: its past 'past_k' is also read by Shape 'shape'"},
      {"APresentWhoseRowsAreCounted",
       std::string(kTwoLayers) + "output rows i64[1]\nrows = Shape(present_k) {start=-2, end=-1}\n", "",
       "value-is-read: present 'present_k' is read by Shape 'rows'"},
      {"APresentThatIsRead", std::string(kTwoLayers) + "output sum f32[B]\nsum = ReduceSum(present_k, one)\n", "",
       "value-is-read: present 'present_k' is read by ReduceSum 'sum'"},
  };
}

std::string NameOfMiss(const testing::TestParamInfo<NearMiss>& miss) { return miss.param.name; }

INSTANTIATE_TEST_SUITE_P(Graphs, WindowCachesDeclines, testing::ValuesIn(NearMisses()), NameOfMiss);

// Nothing but the rows of caches tells how many tokens there are.
TEST(WindowCaches, WithoutAMaskTakeTheNumberOfTokensFromACacheThatStaysWhole) {
  Graph graph = GraphOf(Unmasked(""));
  ASSERT_TRUE(RewriteGraph(graph, WindowCaches()).ok());
  const std::string text = ToText(graph.Copy());
  EXPECT_THAT(text, testing::HasSubstr("past_k1_held = Shape(past_k1) {start=2, end=3}"));
  EXPECT_THAT(text, testing::HasSubstr("GroupQueryAttention(hidden, new, new, past_k, past_v, past_k1_seqlens_k, "
                                       "past_k1_total) {num_heads=4, kv_num_heads=1, do_rotary=0, local_window_size=4, "
                                       "window_cache_rows=7}"));
  EXPECT_THAT(text.substr(text.find("far, ")), testing::Not(testing::HasSubstr("window_cache_rows")));
}

TEST(WindowCaches, WithoutAMaskSayThatNothingTellsTheNumberOfTokens) {
  Graph graph = GraphOf(Unmasked(", left_window_size=5"));
  const auto report = RewriteGraph(graph, WindowCaches());
  ASSERT_TRUE(report.ok());
  std::vector<std::string> found;
  for (const auto& outcome : report->outcomes)
    if (outcome.rule == "window-caches") found.push_back(outcome.code + ": " + outcome.reason);
  const std::string reason =
      "lengths-unknown: its total_sequence_length 'past_k_total' is counted from the rows of a cache that would keep a "
      "window; needs the number of tokens so far, as the columns of an attention_mask or the rows of a layer without a "
      "window tell it";
  EXPECT_THAT(found, testing::ElementsAre(reason, reason));
}

TEST(WindowCaches, SourceAndBorrowerHaveTheSameRows) {
  Graph graph = GraphOf(kTwoLayers);
  ASSERT_TRUE(RewriteGraph(graph, WindowCaches()).ok());
  const std::string text = ToText(graph.Copy());
  size_t found = 0;
  for (size_t at = 0; (at = text.find("window_cache_rows=7", at)) != std::string::npos; ++at) ++found;
  EXPECT_EQ(found, 2U);
  EXPECT_EQ(graph.ExtentName("past_k", 2), "past_window_of_7");
  EXPECT_EQ(graph.ExtentName("present_v", 2), "present_window_of_7");
}

// PyTorch's exporter takes the batch from the last layer's past.
TEST(WindowCaches, LeaveTheBatchAndTheHeadsToBeRead) {
  for (const char* reads : {"output batch i64[1]\nbatch = Shape(past_k) {start=0, end=1}\n",
                            "output heads i64[1]\nheads = Shape(past_v) {start=-3, end=-2}\n",
                            "output heads i64[1]\nshape = Shape(past_k)\nheads = Gather(shape, one)\n",
                            "output heads i64[2]\nheads = Shape(present_k) {end=2}\n"}) {
    Graph graph = GraphOf(std::string(kTwoLayers) + reads);
    ASSERT_TRUE(RewriteGraph(graph, WindowCaches()).ok());
    EXPECT_THAT(ToText(graph.Copy()), testing::HasSubstr("window_cache_rows=7")) << reads;
  }
}

TEST(WindowCaches, NeedASlackThatARowCountCanHold) {
  Graph graph = GraphOf(std::string(kTwoLayers));
  RewriteOptions options = WindowCaches();
  options.window_caches = -1;
  EXPECT_THAT(RewriteGraph(graph, options).status().message(),
              testing::AllOf(testing::HasSubstr("option 'window_caches' = '-1': needs 0 to "),
                             testing::HasSubstr(" rows beside the window")));
}

TEST(WindowCaches, NeedKvsharesOps) {
  Graph graph = GraphOf(std::string(kTwoLayers));
  RewriteOptions options = WindowCaches();
  options.target = Target::kOrt;
  EXPECT_EQ(RewriteGraph(graph, options).status().message(),
            "option 'window_caches': ONNX Runtime has no window-sized cache that other layers borrow; needs option "
            "'target' = 'kvshare'");
}

}  // namespace
}  // namespace kvshare::graph
