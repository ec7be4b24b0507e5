// A rewrite as a whole: its options, and what a second one finds.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/graph/rewrite_text.h"
#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

TEST(Rewrite, OptionsThatContradictAreNamed) {
  Graph graph = GraphOf(kTwoLayers);
  RewriteOptions options = To(Target::kKvshareAttention);
  options.rope = Rope::kFold;
  EXPECT_EQ(RewriteGraph(graph, options).status().message(),
            "option 'rope' = 'fold': kvshare::Attention takes a rotated query; needs option 'rope' = 'keep'");
  options = To(Target::kOrt);
  options.min_ort = "new";
  EXPECT_EQ(RewriteGraph(graph, options).status().message(), "option 'min_ort' = 'new': needs a version, e.g. 1.31");
}

TEST(Rewrite, OptionsThatNameTheTargetAloneAreValid) {
  EXPECT_THAT(TextAfter(kTwoLayers, RewriteOptions{}), testing::HasSubstr("do_rotary=1"));
  for (const Target target : {Target::kKvshare, Target::kKvshareAttention, Target::kOrt}) {
    Graph graph = GraphOf(kTwoLayers);
    RewriteOptions options;
    options.target = target;
    EXPECT_TRUE(RewriteGraph(graph, options).ok());
  }
}

TEST(Rewrite, ASkippedRuleDoesNotRun) {
  RewriteOptions options = To(Target::kKvshare);
  options.skip = {"fold-rotary", "own-layers"};
  const std::string after = TextAfter(kTwoLayers, options);
  EXPECT_THAT(after, testing::HasSubstr("com.microsoft.GroupQueryAttention(q0"));
  EXPECT_THAT(after, testing::HasSubstr("kvshare.GroupQueryAttention(rotated"));
}

TEST(Rewrite, ASecondRunFindsNothingToDo) {
  for (const Target target : {Target::kKvshare, Target::kKvshareAttention, Target::kOrt}) {
    Graph graph = GraphOf(kTwoLayers);
    ASSERT_TRUE(RewriteGraph(graph, To(target)).ok());
    const std::string once = graph.Copy().SerializeAsString();
    const auto again = RewriteGraph(graph, To(target));
    ASSERT_TRUE(again.ok());
    EXPECT_FALSE(again->changed);
    EXPECT_EQ(graph.Copy().SerializeAsString(), once);
    EXPECT_THAT(again->notes,
                testing::ElementsAre("nothing to do: all 2 attention layers have the target's form already"));
  }
}

}  // namespace
}  // namespace kvshare::graph
