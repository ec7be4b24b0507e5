#include "graph/inspection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr const char* kUnfused = R"(
input q f32[B,4,S,8]
input kt f32[B,4,8,T]
input v f32[B,4,T,8]
input x f32[B,S,32]
const w f32[] = 1
output y f32[B,4,S,8]
)";

int64_t Unfused(const std::string& nodes) { return Describe(GraphOf(kUnfused + nodes)).unfused_layers; }

TEST(Inspection, AttentionOfSingleOperatorsIsCountedAndTold) {
  const Inspection found =
      Describe(GraphOf(std::string(kUnfused) +
                       "s = MatMul(q, kt)\nscaled = Mul(s, w)\np = Softmax(scaled) {axis=-1}\ny = MatMul(p, v)\n"));
  EXPECT_EQ(found.unfused_layers, 1);
  EXPECT_THAT(found.layers, IsEmpty());
  EXPECT_THAT(found.warnings,
              ElementsAre("1 layers compute attention by MatMul and Softmax, which kvshare does not serve; export with "
                          "opset 23 or later, which has Attention"));
}

TEST(Inspection, WhatStandsBetweenScoresAndSoftmaxIsLookedThrough) {
  EXPECT_EQ(Unfused("s = MatMul(q, kt)\na = Div(s, w)\nb = Tanh(a)\nc = Mul(b, w)\nd = Add(c, w)\ne = Cast(d) {to=1}\n"
                    "p = Softmax(e)\nf = Cast(p) {to=1}\ng = Dropout(f)\ny = MatMul(g, v)\n"),
            1);
  EXPECT_EQ(Unfused("s = com.microsoft.FusedMatMul(q, kt)\np = Softmax(s)\ny = MatMul(p, v)\n"), 1);
  EXPECT_EQ(Unfused("s = MatMul(q, kt)\np = Softmax(s)\no = MatMul(p, v)\nt = MatMul(o, kt)\nr = Softmax(t)\n"
                    "y = MatMul(r, v)\n"),
            2);
}

TEST(Inspection, ASoftmaxThatIsNoAttentionIsNotCounted) {
  // A classifier, a router of experts, and weights that nobody multiplies.
  EXPECT_EQ(Unfused("l = MatMul(x, w)\np = Softmax(l)\ny = Identity(q)\n"), 0);
  EXPECT_EQ(Unfused("l = MatMul(x, w)\np = Softmax(l)\nm = MatMul(p, v)\ny = Identity(q)\n"), 0);
  EXPECT_EQ(Unfused("s = MatMul(q, kt)\np = Softmax(s)\nm = MatMul(p, w)\ny = Identity(q)\n"), 0);
  EXPECT_EQ(Unfused("p = Softmax(q)\ny = MatMul(p, v)\n"), 0);
  EXPECT_EQ(Unfused("s = MatMul(q, kt)\np = Softmax(s)\ny = MatMul(v, p)\n"), 0);
}

TEST(Inspection, HeadsThatTheGraphRepeatsAreToldAsCopies) {
  const Inspection found = Describe(GraphOf(R"(
input q f32[B,4,S,8]
input joined f32[B,2,T,8]
output y f32[B,4,S,8]
output y2 f32[B,4,S,8]
const two i64[1] = 2
const wide_shape i64[5] = 1 2 2 9 8
const flat_shape i64[4] = 1 4 9 8
k = Identity(joined)
five = Unsqueeze(k, two)
wide = Expand(five, wide_shape)
repeated = Reshape(wide, flat_shape)
y = Attention(q, repeated, repeated)
y2 = Attention(y, repeated, repeated)
)"));
  ASSERT_EQ(found.layers.size(), 2U);
  for (const AttentionLayer& layer : found.layers) {
    EXPECT_EQ(layer.query_heads, 4);
    EXPECT_EQ(layer.kv_heads, 2);
    EXPECT_EQ(layer.expansion, 2);
  }
  EXPECT_EQ(found.repeat_nodes, 3);
  EXPECT_EQ(found.borrowed_copies, 0);
  EXPECT_THAT(found.warnings,
              testing::Contains(HasSubstr("and 1 more: the graph copies each key-value head once for every "
                                          "query head of its group (repeat_kv), at every step")));
}

TEST(Inspection, HeadsThatAreNotRepeatedAreNoCopies) {
  const Inspection found = Describe(GraphOf(kTwoLayers));
  EXPECT_EQ(found.repeat_nodes, 0);
  for (const AttentionLayer& layer : found.layers) EXPECT_EQ(layer.expansion, 1);
}

}  // namespace
}  // namespace kvshare::graph
