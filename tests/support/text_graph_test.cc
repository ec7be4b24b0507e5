#include "tests/support/text_graph.h"

#include <gtest/gtest.h>

namespace kvshare::graph {
namespace {

TEST(TextGraph, NodesReadBackAsTheyWereWritten) {
  const std::string nodes =
      "a, _, b = com.microsoft.Op(x, _, y) {i=3, f=0.5, list=[1,-2]}\n"
      "c = Neg(a)\n";
  const auto model = ParseTextGraph("input x f32[B,2]\ninput y f32[]\n" + nodes);
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_EQ(ToText(*model), nodes);
}

TEST(TextGraph, AConstantOfAnySizeIsNoReasonToFillTheMemory) {
  for (const char* extents : {"22222222222222232,8", "9223372036854775807,9223372036854775807", "-4,-4", "1048577"})
    EXPECT_FALSE(ParseTextGraph(std::string("const c f32[") + extents + "] = 1\n").ok()) << extents;
  EXPECT_TRUE(ParseTextGraph("const c f32[1048576] = 1\n").ok());
}

TEST(TextGraph, AnErrorNamesItsLine) {
  EXPECT_EQ(ParseTextGraph("# fine\ninput x f99[2]\n").status().message(),
            "line 2: 'input x f99[2]' is no statement of a text graph");
}

}  // namespace
}  // namespace kvshare::graph
