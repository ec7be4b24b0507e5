#include "graph/text_graph.h"

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

TEST(TextGraph, AnErrorNamesItsLine) {
  EXPECT_EQ(ParseTextGraph("# fine\ninput x f99[2]\n").status().message(),
            "line 2: 'input x f99[2]' is no statement of a text graph");
}

}  // namespace
}  // namespace kvshare::graph
