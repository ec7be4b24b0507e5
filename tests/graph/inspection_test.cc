#include "graph/inspection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/graph/torch_layers.h"

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
              ElementsAre("1 layers compute attention by MatMul and Softmax, which kvshare does not serve; PyTorch "
                          "writes Attention where the model calls scaled_dot_product_attention (in transformers by "
                          "attn_implementation='sdpa')"));
}

TEST(Inspection, AnOldOpsetIsToldThatItLacksAttention) {
  onnx::ModelProto model =
      *ParseTextGraph(std::string(kUnfused) + "s = MatMul(q, kt)\np = Softmax(s)\ny = MatMul(p, v)\n");
  for (auto& import : *model.mutable_opset_import())
    if (import.domain().empty()) import.set_version(22);
  const Inspection found = Describe(*Graph::Make(std::move(model), ""));
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

void AddFunction(onnx::ModelProto& model, const std::string& name, const std::string& lines) {
  const onnx::ModelProto text = *ParseTextGraph(
      "input q f32[B,4,S,8]\ninput kt f32[B,4,8,T]\ninput v f32[B,4,T,8]\noutput y f32[B,4,S,8]\n" + lines);
  auto& function = *model.add_functions();
  function.set_domain("local");
  function.set_name(name);
  *function.mutable_node() = text.graph().node();
  *function.mutable_opset_import() = text.opset_import();
  for (const char* input : {"q", "kt", "v"}) function.add_input(input);
  function.add_output("y");
}

int64_t UnfusedIn(const onnx::ModelProto& model) {
  const auto graph = Graph::Make(model, ".");
  EXPECT_TRUE(graph.ok()) << graph.status().message();
  return graph.ok() ? Describe(*graph).unfused_layers : -1;
}

TEST(Inspection, AttentionOfSingleOperatorsInFunctionsCountsForEachCall) {
  onnx::ModelProto model = *ParseTextGraph(std::string(kUnfused) +
                                           "import local 1\na = local.Layer(q, kt, v)\nb = local.Layer(a, kt, v)\n"
                                           "y = local.Sdpa(b, kt, v)\n");
  AddFunction(model, "Layer", "import local 1\ny = local.Sdpa(q, kt, v)\n");
  AddFunction(model, "Sdpa", "s = MatMul(q, kt)\np = Softmax(s)\ny = MatMul(p, v)\n");
  AddFunction(model, "NeverCalled", "s = MatMul(q, kt)\np = Softmax(s)\ny = MatMul(p, v)\n");
  EXPECT_EQ(UnfusedIn(model), 3);
}

TEST(Inspection, FunctionsThatCallThemselvesOrTooManyOthersAreCountedInTime) {
  onnx::ModelProto model = *ParseTextGraph(std::string(kUnfused) + "import local 1\ny = local.F0(q, kt, v)\n");
  AddFunction(model, "Own",
              "import local 1\ns = MatMul(q, kt)\np = Softmax(s)\nx = MatMul(p, v)\ny = local.Own(x, kt, v)\n");
  for (int i = 0; i < 99; ++i) {
    const std::string next = i < 98 ? "F" + std::to_string(i + 1) : "Own";
    AddFunction(model, "F" + std::to_string(i),
                "import local 1\nx = local." + next + "(q, kt, v)\ny = local." + next + "(x, kt, v)\n");
  }
  EXPECT_EQ(UnfusedIn(model), 1'000'000);
}

TEST(Inspection, ASoftmaxThatIsNoAttentionIsNotCounted) {
  // A classifier, a router of experts, and weights that nobody multiplies.
  EXPECT_EQ(Unfused("l = MatMul(x, w)\np = Softmax(l)\ny = Identity(q)\n"), 0);
  EXPECT_EQ(Unfused("l = MatMul(x, w)\np = Softmax(l)\nm = MatMul(p, v)\ny = Identity(q)\n"), 0);
  EXPECT_EQ(Unfused("s = MatMul(q, kt)\np = Softmax(s)\nm = MatMul(p, w)\ny = Identity(q)\n"), 0);
  EXPECT_EQ(Unfused("p = Softmax(q)\ny = MatMul(p, v)\n"), 0);
  EXPECT_EQ(Unfused("s = MatMul(q, kt)\np = Softmax(s)\ny = MatMul(v, p)\n"), 0);
}

TEST(Inspection, ALayersPastIsTheOneThatItsKeysAreJoinedTo) {
  const Inspection found = Describe(GraphOf(kTorchLayers));
  EXPECT_EQ(found.layers[0].past_key, "past_k");
  EXPECT_EQ(found.layers[0].past_value, "past_v");
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

// mobius's static cache: rows [B, C, Hkv * D], written by TensorScatter; layer 1 takes what layer 0 takes.
constexpr const char* kTensorScatter = R"(
input q f32[B,S,32]
input k f32[B,S,16]
input cache_k f32[B,64,16]
input cache_v f32[B,64,16]
input at i64[B]
input valid i64[B]
output y f32[B,S,32]
output updated_k f32[B,64,16]
output updated_v f32[B,64,16]
updated_k = TensorScatter(cache_k, k, at) {axis=1}
updated_v = TensorScatter(cache_v, k, at) {axis=1}
x = Attention(q, updated_k, updated_v, _, _, _, valid) {q_num_heads=4, kv_num_heads=2, is_causal=1}
y = Attention(x, updated_k, updated_v, _, _, _, valid) {q_num_heads=4, kv_num_heads=2, is_causal=1}
)";

TEST(Inspection, AStaticCacheIsNamedWithItsRowsAndHeadSize) {
  const Inspection found = Describe(GraphOf(kTensorScatter));
  ASSERT_EQ(found.layers.size(), 2U);
  EXPECT_EQ(found.layers[0].head_size, 8);
  EXPECT_EQ(found.layers[0].cache_rows, 64);
  EXPECT_EQ(found.layers[0].row_bytes, 2 * 16 * 4);
  EXPECT_EQ(found.layers[0].written, "own Attention, static cache of 64 rows by TensorScatter");
  EXPECT_EQ(found.layers[1].kind, LayerKind::kShared);
  EXPECT_EQ(found.layers[1].source, 0);
  EXPECT_EQ(found.layers[1].cache_rows, 0);
  EXPECT_EQ(found.layers[1].written, "Attention that takes another layer's key and value");
}

// torch's StaticCache: [B, Hkv, C, D], turned to write rows and back.
TEST(Inspection, AStaticCacheThatIsTurnedToBeWrittenIsNamedToo) {
  const Inspection found = Describe(GraphOf(R"(
input q f32[1,2,1,8]
input k f32[1,1,2,8]
input cache_k f32[1,2,64,8]
input cache_v f32[1,2,64,8]
input at i64[1,1]
output y f32[1,2,1,8]
turned_k = Transpose(cache_k) {perm=[2,0,1,3]}
turned_v = Transpose(cache_v) {perm=[2,0,1,3]}
written_k = ScatterND(turned_k, at, k)
written_v = ScatterND(turned_v, at, k)
all_k = Transpose(written_k) {perm=[1,2,0,3]}
all_v = Transpose(written_v) {perm=[1,2,0,3]}
y = Attention(q, all_k, all_v)
)"));
  ASSERT_EQ(found.layers.size(), 1U);
  EXPECT_EQ(found.layers[0].head_size, 8);
  EXPECT_EQ(found.layers[0].cache_rows, 64);
  EXPECT_EQ(found.layers[0].written, "own Attention, static cache of 64 rows by ScatterND");
}

// mobius-onnx 0.1.0's hybrid graphs turn a static cache that has no heads to turn, which ONNX Runtime does not load.
TEST(Inspection, ALayerThatTurnsAStaticCacheBorrowsAndIsToldSo) {
  const std::string turned =
      TwoLayersWith("y",
                    "const fold i64[3] = 0 0 -1\ntk = Transpose(updated_k) {perm=[0,2,1,3]}\nyk = Reshape(tk, fold)\n"
                    "tv = Transpose(updated_v) {perm=[0,2,1,3]}\nyv = Reshape(tv, fold)\n"
                    "y = Attention(x, yk, yv) {q_num_heads=4, kv_num_heads=2}",
                    kTensorScatter);
  const Inspection found = Describe(GraphOf(turned));
  ASSERT_EQ(found.layers.size(), 2U);
  EXPECT_EQ(found.layers[1].source, 0);
  EXPECT_EQ(found.layers[1].note, "takes 'updated_k' through 2 nodes, its source layer 0 as it is");
}

TEST(Inspection, TheProducerIsNamedAndEachFormToo) {
  auto model = ParseTextGraph(kTwoLayers);
  ASSERT_TRUE(model.ok());
  const auto producer = [&](const char* name, const char* version, const char* node) {
    model->set_producer_name(name);
    model->set_producer_version(version);
    model->mutable_graph()->mutable_node(0)->set_name(node);
    return Describe(*Graph::Make(*model, ".")).producer;
  };
  EXPECT_EQ(producer("", "", "n"), "");
  EXPECT_EQ(producer("mobius", "0.1.0", "n"), "mobius 0.1.0");
  EXPECT_EQ(producer("onnxruntime-genai", "0.18.0", "/model/n"), "onnxruntime-genai's model builder 0.18.0");
  EXPECT_EQ(producer("pytorch", "2.13.0+cpu", "node_n"), "torch.onnx.export (dynamo), PyTorch 2.13.0+cpu");
  EXPECT_EQ(producer("pytorch", "2.6.0", "/model/n"), "torch.onnx.export (TorchScript), PyTorch 2.6.0");
  EXPECT_EQ(producer("somebody", "", "n"), "somebody");
  const Inspection found = Describe(GraphOf(kTwoLayers));
  EXPECT_EQ(found.layers[0].written, "own GroupQueryAttention, past and present of its own");
  EXPECT_EQ(found.layers[1].written, "Attention that borrows a cache");
  EXPECT_THAT(found.imports, ElementsAre("", "com.microsoft"));
  EXPECT_EQ(found.opsets.size(), 2U);
}

}  // namespace
}  // namespace kvshare::graph
