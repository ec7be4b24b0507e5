#include "graph/sums.h"

#include <gtest/gtest.h>

#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

constexpr std::string_view kText = R"(
input ids i64[batch,seq]
input past f32[batch,2,past,8]
input new f32[batch,2,seq,8]
input odd f32[2*seq,n]
output joined f32[batch,2,all,8]
value named f32[batch,seq + past]
const one i64[1] = 1
const four i64[1] = 4
joined = Concat(past, new) {axis=-2}
named = Relu(ids)
S = Shape(new) {start=2, end=3}
P = Shape(past) {start=2, end=3}
T = Add(P, S)
less = Sub(T, S)
T4 = Add(T, four)
shape = Concat(S, one, T4) {axis=0}
product = Mul(S, P)
)";

TEST(Sums, AJoinedExtentIsTheSumOfItsParts) {
  const Graph graph = GraphOf(kText);
  EXPECT_EQ(TextOf(SumOfExtent(graph, "joined", 2)), "past + seq");
  EXPECT_EQ(TextOf(SumOfExtent(graph, "joined", 0)), "batch");
  EXPECT_TRUE(SumOfExtent(graph, "joined", 1).Is(2));
}

TEST(Sums, NamesOfAnExporterAreReadAsSums) {
  const Graph graph = GraphOf(kText);
  EXPECT_EQ(SumOfExtent(graph, "named", 1), SumOfExtent(graph, "joined", 2));
  EXPECT_EQ(TextOf(SumOfExtent(graph, "odd", 0)), "2*seq");
}

TEST(Sums, SumsAndDifferencesOfExtentsAreComparedByName) {
  const Graph graph = GraphOf(kText);
  EXPECT_EQ(SumOf(graph, "T"), SumOfExtent(graph, "joined", 2));
  EXPECT_EQ(SumOf(graph, "less"), SumOfExtent(graph, "past", 2));
  EXPECT_EQ(SumOf(graph, "product"), std::nullopt);
  const auto shape = SumsOf(graph, "shape");
  ASSERT_TRUE(shape.has_value());
  ASSERT_EQ(shape->size(), 3U);
  EXPECT_EQ(TextOf((*shape)[2]), "past + seq + 4");
}

// A cache that the model keeps to its last 4 rows, as PyTorch's exporter counts it.
TEST(Sums, WhatIsDroppedOfACacheIsAnExcess) {
  const Graph graph = GraphOf(std::string(kText) + R"(
const nought i64[1] = 0
const minus i64[1] = -1
const least i64[1] = -4
const most i64[1] = 9223372036854775807
const rows i64[1] = 2
kept = Slice(past, least, most, rows, one)
grown = Concat(kept, new) {axis=2}
beyond = Add(least, P)
excess = Max(nought, beyond)
turned = Mul(minus, excess)
left = Add(P, turned)
held = Max(nought, left)
all = Add(held, S)
deficit = Sub(four, P)
missing = Max(deficit, nought)
doubled = Mul(four, P)
)");
  EXPECT_EQ(TextOf(SumOfExtent(graph, "kept", 2)), "-Max(0, past - 4) + past");
  EXPECT_EQ(TextOf(SumOfExtent(graph, "kept", 0)), "batch");
  EXPECT_EQ(SumOf(graph, "all"), SumOfExtent(graph, "grown", 2));
  ASSERT_TRUE(SumOf(graph, "excess").has_value());
  EXPECT_TRUE(IsExcess(*SumOf(graph, "excess")));
  EXPECT_FALSE(IsExcess(*SumOf(graph, "turned")));
  EXPECT_FALSE(IsExcess(*SumOf(graph, "P")));
  EXPECT_EQ(TextOf(*SumOf(graph, "missing")), "Max(0, -past + 4)");
  EXPECT_EQ(SumOf(graph, "doubled"), std::nullopt);
}

TEST(Sums, AnExtentWithoutANameIsItself) {
  const Graph graph = GraphOf("input x f32[a,b]\noutput z f32[a,b]\ny = Relu(x)\nz = Relu(y)\n");
  EXPECT_EQ(TextOf(SumOfExtent(graph, "y", 1)), "y[1]");
  EXPECT_NE(SumOfExtent(graph, "y", 1), SumOfExtent(graph, "y", 0));
}

TEST(Sums, PartsOfASplitHaveTheExtentsThatItLeaves) {
  const Graph graph = GraphOf(
      "input qkv f32[batch,seq,24]\noutput v f32[batch,seq,8]\nconst sizes i64[2] = 16 8\n"
      "q, k = Split(qkv, sizes) {axis=2}\nu, v = Split(qkv, sizes) {axis=-1}\n");
  for (const char* part : {"q", "k", "u", "v"}) EXPECT_EQ(TextOf(SumOfExtent(graph, part, 1)), "seq");
  EXPECT_EQ(TextOf(SumOfExtent(graph, "k", 2)), "k[2]");
}

}  // namespace
}  // namespace kvshare::graph
