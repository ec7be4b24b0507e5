#include "graph/layers.h"

#include <gtest/gtest.h>

#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

TEST(FindLayers, FindsTheOwnAndTheSharedLayer) {
  const Graph graph = GraphOf(kTwoLayers);
  const auto layers = FindLayers(graph);
  ASSERT_EQ(layers.size(), 2U);
  EXPECT_EQ(layers[0].kind, LayerKind::kOwn);
  EXPECT_EQ(layers[0].window, 4);
  EXPECT_EQ(layers[0].head_size, 8);
  EXPECT_EQ(layers[1].kind, LayerKind::kShared);
  EXPECT_EQ(layers[1].source, 0);
  EXPECT_EQ(layers[1].key, "present_k");
  EXPECT_EQ(layers[1].value, "present_v");
  EXPECT_EQ(layers[1].window, 4);
  EXPECT_EQ(layers[1].copies.size(), 4U);
  EXPECT_EQ(layers[1].trouble.message(), "");
}

TEST(FindLayers, FindsUpstreamsSharedFormAndItsEmptyKey) {
  const std::string dynamic = TwoLayersWith(
      "out1",
      "B = Shape(out0) {start=0, end=1}\nrest = Constant() {value_ints=[0,8]}\nextent = Concat(B, rest) {axis=0}\n"
      "empty = ConstantOfShape(extent)\n"
      "out1 = com.microsoft.GroupQueryAttention(out0, empty, empty, present_k, present_v, seqlens, total) "
      "{num_heads=4, kv_num_heads=1}");
  const Graph graph = GraphOf(dynamic);
  auto layers = FindLayers(graph);
  EXPECT_EQ(layers.at(1).source, 0);
  EXPECT_FALSE(layers.at(1).constant_empty);
  const Graph fixed = GraphOf(TwoLayersWith("empty", "const empty f32[1,0,8] = 0", dynamic));
  layers = FindLayers(fixed);
  EXPECT_EQ(layers.at(1).source, 0);
  EXPECT_TRUE(layers.at(1).constant_empty);
}

TEST(FindLayers, AKeyOfAGraphInputIsBorrowedFromOutside) {
  std::string text = TwoLayersWith("kt", "kt = Transpose(past_k) {perm=[0,2,1,3]}");
  text = TwoLayersWith("vt", "vt = Transpose(past_v) {perm=[0,2,1,3]}", text);
  const Graph graph = GraphOf(text);
  const auto layers = FindLayers(graph);
  EXPECT_EQ(layers.at(1).kind, LayerKind::kShared);
  EXPECT_EQ(layers.at(1).source, -1);
  EXPECT_EQ(layers.at(1).key, "past_k");
  EXPECT_TRUE(layers.at(1).trouble.ok());
}

std::string TroubleOf(const std::string& text, size_t layer = 1) {
  const Graph graph = GraphOf(text);
  return FindLayers(graph).at(layer).trouble.message();
}

TEST(FindLayers, ABorrowedKeyThatIsReshapedAloneIsOdd) {
  EXPECT_EQ(TroubleOf(TwoLayersWith("k1", "k1 = Reshape(present_k, fold)")),
            "1 nodes lie between 'present_k' and it; needs Transpose then Reshape");
}

TEST(FindLayers, ABorrowedKeyWhoseHeadsAreRepeatedIsOdd) {
  const std::string repeated =
      "const wide_shape i64[5] = 1 1 4 1 8\nconst flat i64[4] = 1 4 -1 8\nfive = Unsqueeze(present_k, two)\n"
      "wide5 = Expand(five, wide_shape)\nk1 = Reshape(wide5, flat)";
  EXPECT_EQ(TroubleOf(TwoLayersWith("k1", repeated)),
            "the graph repeats each head of 'present_k' 4 times; needs it as it is");
}

// Upstream's shared form, whose present is one more name of what it borrows.
TEST(FindLayers, ASharedLayersPresentIsNoSource) {
  const std::string shared =
      "const empty f32[1,0,8] = 0\nout1, again_k, again_v = com.microsoft.GroupQueryAttention(out0, empty, empty, "
      "present_k, present_v, seqlens, total) {num_heads=4, kv_num_heads=1}\n"
      "out2 = com.microsoft.GroupQueryAttention(out1, empty, empty, again_k, again_v, seqlens, total) {num_heads=4, "
      "kv_num_heads=1}";
  EXPECT_EQ(TroubleOf(TwoLayersWith("out1", shared), 2), "source layer 1 is itself shared");
}

TEST(FindLayers, AnEmptyKeyBesideAValueOfTokensIsOdd) {
  const std::string half =
      "const empty f32[1,0,8] = 0\nout1 = com.microsoft.GroupQueryAttention(out0, empty, k0, present_k, present_v, "
      "seqlens, total) {num_heads=4, kv_num_heads=1}";
  EXPECT_EQ(TroubleOf(TwoLayersWith("out1", half)), "key has length 0 and value has not");
}

// As PyTorch's exporter writes layers that share: query and key of rank 4, past and new keys joined outside of them.
TEST(FindLayers, LayersThatTakeTheSameKeyAndValueShareThem) {
  const Graph graph = GraphOf(R"(
input q f32[B,4,S,8]
input k f32[B,2,S,8]
input past f32[B,2,P,8]
output y f32[B,4,S,8]
output joined f32[B,2,T,8]
joined = Concat(past, k) {axis=2}
x = Attention(q, joined, joined)
y = Attention(x, joined, joined)
)");
  const auto layers = FindLayers(graph);
  ASSERT_EQ(layers.size(), 2U);
  EXPECT_EQ(layers[0].kind, LayerKind::kOwn);
  EXPECT_EQ(layers[0].query_heads, 4);
  EXPECT_EQ(layers[0].kv_heads, 2);
  EXPECT_EQ(layers[0].head_size, 8);
  EXPECT_EQ(layers[1].kind, LayerKind::kShared);
  EXPECT_EQ(layers[1].source, 0);
  EXPECT_TRUE(layers[1].trouble.ok());
  EXPECT_TRUE(layers[1].made_outside);
}

// The same where the exporter repeats each head for the queries of its group, as PyTorch does for attention without
// GQA.
TEST(FindLayers, RepeatedKeysCountAsTheHeadsBeforeTheRepetition) {
  const std::string text = R"(
input q f32[B,4,S,8]
input k f32[B,2,S,8]
input past f32[B,2,P,8]
output y f32[B,4,S,8]
output joined f32[B,2,T,8]
const two i64[1] = 2
const width i64[1] = 8
const group i64[1] = 2
const heads i64[1] = 4
joined = Concat(past, k) {axis=2}
B = Shape(q) {start=0, end=1}
P = Shape(past) {start=2, end=3}
S = Shape(q) {start=2, end=3}
T = Add(P, S)
five = Unsqueeze(joined, two)
wide_shape = Concat(B, two, group, T, width) {axis=0}
wide = Expand(five, wide_shape)
flat_shape = Concat(B, heads, T, width) {axis=0}
repeated = Reshape(wide, flat_shape) {allowzero=1}
again = Expand(five, wide_shape)
repeated2 = Reshape(again, flat_shape) {allowzero=1}
x = Attention(q, repeated, repeated)
y = Attention(q, repeated2, repeated2)
)";
  const Graph graph = GraphOf(text);
  const auto layers = FindLayers(graph);
  ASSERT_EQ(layers.size(), 2U);
  for (const Layer& layer : layers) {
    EXPECT_EQ(layer.query_heads, 4);
    EXPECT_EQ(layer.kv_heads, 2);
    EXPECT_EQ(layer.expansion, 2);
    EXPECT_EQ(layer.copies.size(), 6U);
  }
  EXPECT_EQ(layers[1].source, 0);
  EXPECT_TRUE(layers[1].made_outside);
}

TEST(FindLayers, ReadsTheWindowAttributesOfEachOpset) {
  const auto window = [](const std::string& attributes, const std::string& mask) {
    const Graph graph = GraphOf(TwoLayersWith(
        "out1", "out1 = Attention(rotated, k1, v1" + mask + ") {q_num_heads=4, kv_num_heads=1" + attributes + "}"));
    return FindLayers(graph).at(1).window;
  };
  EXPECT_EQ(window(", left_window_size=2", ""), 3);
  EXPECT_EQ(window(", left_window_size=-1", ""), kFullWindow);
  EXPECT_EQ(window(", left_window_size=9223372036854775807", ""), kFullWindow);
  EXPECT_EQ(window(", left_window_size=2", ", bias"), 3);
  EXPECT_EQ(window(", left_window_size=7", ", bias"), 4);
  EXPECT_EQ(window(", local_window_size=5", ""), 5);
}

// ONNX has two names for its default domain.
TEST(FindLayers, ANodeOfDomainAiOnnxIsOnnxs) {
  onnx::ModelProto model = *ParseTextGraph(kTwoLayers);
  for (Node& node : *model.mutable_graph()->mutable_node())
    if (node.domain().empty()) node.set_domain("ai.onnx");
  const auto graph = Graph::Make(model, ".");
  ASSERT_TRUE(graph.ok());
  const auto layers = FindLayers(*graph);
  ASSERT_EQ(layers.size(), 2U);
  EXPECT_EQ(layers[1].source, 0);
  EXPECT_EQ(layers[1].window, 4);
  EXPECT_TRUE(layers[1].trouble.ok()) << layers[1].trouble.message();
  EXPECT_TRUE(layers[1].mask_trouble.ok()) << layers[1].mask_trouble.message();
}

// As onnxruntime-genai's model builder writes it: the cache's last extent is a name.
TEST(FindLayers, APackedQueryTellsTheHeadSize) {
  const Graph graph = GraphOf(R"(
import com.microsoft 1
input q f32[B,S,64]
input past f32[B,2,P,width]
input seqlens i32[B]
input total i32[]
output y f32[B,S,32]
output k f32[B,2,T,width]
output v f32[B,2,T,width]
y, k, v = com.microsoft.GroupQueryAttention(q, _, _, past, past, seqlens, total) {num_heads=4, kv_num_heads=2}
)");
  EXPECT_EQ(FindLayers(graph).at(0).head_size, 8);
}

TEST(FindLayers, AFunctionOfTheModelIsNoAttentionWhateverItsName) {
  onnx::ModelProto model = *ParseTextGraph(kTwoLayers);
  auto& function = *model.add_functions();
  function.set_domain("com.microsoft");
  function.set_name("GroupQueryAttention");
  const auto graph = Graph::Make(model, ".");
  ASSERT_TRUE(graph.ok());
  EXPECT_EQ(FindLayers(*graph).size(), 1U);
}

TEST(FindLayers, AFunctionOfTheModelIsNoTransposeWhateverItsName) {
  onnx::ModelProto model = *ParseTextGraph(kTwoLayers);
  model.add_functions()->set_name("Transpose");
  const auto graph = Graph::Make(model, ".");
  ASSERT_TRUE(graph.ok());
  EXPECT_EQ(FindLayers(*graph).at(1).kind, LayerKind::kOwn);
}

}  // namespace
}  // namespace kvshare::graph
