// What keeps a cache from holding another type.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graph/rewrite_graph.h"
#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

RewriteOptions Narrow(CacheType type) {
  RewriteOptions options;
  options.target = Target::kKvshare;
  options.kv_cache = KvCache{.type = type};
  return options;
}

RewriteOptions Int8(std::map<std::string, std::vector<float>> largest) {
  RewriteOptions options = Narrow(CacheType::kInt8);
  options.kv_cache->largest = std::move(largest);
  return options;
}

std::map<std::string, std::vector<float>> BothSides() {
  return {{"present_k", {127, 254, 0, 1, 1, 1, 1, 1}}, {"present_v", {1, 1, 1, 1, 1, 1, 1, 12.7F}}};
}

struct NearMiss {
  const char* name;
  std::string text;
  RewriteOptions options;
  const char* reason;
};

class KvCacheDeclines : public testing::TestWithParam<NearMiss> {};

TEST_P(KvCacheDeclines, WithAReason) {
  Graph graph = GraphOf(GetParam().text);
  const auto report = RewriteGraph(graph, GetParam().options);
  ASSERT_TRUE(report.ok()) << report.status().message();
  std::vector<std::string> found;
  for (const auto& outcome : report->outcomes)
    if (outcome.rule == "kv-cache") found.push_back(outcome.code + ": " + outcome.reason);
  EXPECT_THAT(found, testing::ElementsAre(GetParam().reason));
  EXPECT_NE(graph.ElementType("past_k"), onnx::TensorProto::FLOAT16);
}

// One layer of kvshare's with pasts of `type`.
std::string Own(const std::string& outputs, const std::string& type) {
  std::string text = R"(
import kvshare 1
input q f32[B,S,32]
input k f32[B,S,8]
input seqlens i32[B]
input total i32[]
output out0 f32[B,S,32]
)";
  for (const char* past : {"past_k", "past_v"}) text += fmt::format("input {} {}[B,1,P,8]\n", past, type);
  if (outputs != "out0")
    for (const char* present : {"present_k", "present_v"})
      text += fmt::format("output {} {}[B,1,T,8]\n", present, type);
  return text + outputs +
         " = kvshare.GroupQueryAttention(q, k, k, past_k, past_v, seqlens, total) {num_heads=4, kv_num_heads=1}\n";
}

RewriteOptions Skipping(const char* rule) {
  RewriteOptions options = Narrow(CacheType::kFp16);
  options.skip = {rule};
  return options;
}

std::vector<NearMiss> NearMisses() {
  return {
      {"NotInKvshare", std::string(kTwoLayers), Skipping("own-layers"),
       "source-form: is not kvshare::GroupQueryAttention, which alone has such a cache"},
      {"ABorrowerWithAMask", std::string(kTwoLayers), Skipping("shared-attention"),
       "source-form: is not kvshare::GroupQueryAttention, which alone has such a cache"},
      {"APresentThatIsRead", std::string(kTwoLayers) + "output sum f32[B]\nsum = ReduceSum(present_k, one)\n",
       Narrow(CacheType::kBf16), "value-is-read: present 'present_k' is read by ReduceSum 'sum'"},
      {"APastWhoseWidthIsRead", std::string(kTwoLayers) + "output width i64[1]\nwidth = Shape(past_k) {start=3}\n",
       Narrow(CacheType::kFp16), "source-cache: its past 'past_k' is also read by Shape 'width'"},
      {"CodesOfAnotherKind", Own("out0, present_k, present_v", "i32"), Narrow(CacheType::kFp16),
       "cache-type: its past 'past_k' holds no floats"},
      {"NoPresents", Own("out0", "f32"), Narrow(CacheType::kFp16),
       "presents-needed: has no presents, so that no cache lasts"},
      {"AnUnseenPresent", std::string(kTwoLayers), Int8({{"present_k", std::vector<float>(8, 1)}}),
       "cache-range: no values of its present 'present_v' were seen"},
      {"OtherChannels", std::string(kTwoLayers), Int8({{"present_k", {1, 2}}, {"present_v", {1, 2}}}),
       "cache-range: values of 2 channels were seen of its present 'present_k'; needs 8"},
  };
}

std::string NameOfMiss(const testing::TestParamInfo<NearMiss>& miss) { return miss.param.name; }

INSTANTIATE_TEST_SUITE_P(Graphs, KvCacheDeclines, testing::ValuesIn(NearMisses()), NameOfMiss);

TEST(KvCache, OfInt8HasAScaleForEachChannelAndBorrowersHaveItToo) {
  Graph graph = GraphOf(kTwoLayers);
  ASSERT_TRUE(RewriteGraph(graph, Int8(BothSides())).ok());
  for (const char* value : {"past_k", "past_v", "present_k", "present_v"})
    EXPECT_EQ(graph.ElementType(value), onnx::TensorProto::INT8) << value;
  int readers = 0;
  for (const Node* node : graph.nodes()) {
    if (node->op_type() != "GroupQueryAttention") continue;
    ++readers;
    const auto* keys = graph.ConstantTensor(Input(*node, 12));
    ASSERT_NE(keys, nullptr);
    // A channel that was always 0 has scale 1.
    EXPECT_THAT(keys->float_data(),
                testing::ElementsAre(1.5F, 3, 1, testing::_, testing::_, testing::_, testing::_, testing::_));
    EXPECT_EQ(FindAttribute(*node, "k_quant_type")->s(), "PER_CHANNEL");
    EXPECT_EQ(IntAttribute(*node, "kv_cache_bit_width"), 8);
    EXPECT_FLOAT_EQ(graph.ConstantTensor(Input(*node, 13))->float_data(7), 0.15F);
  }
  EXPECT_EQ(readers, 2);
}

TEST(KvCache, OfInt4PacksTwoChannelsInAByte) {
  Graph graph = GraphOf(kTwoLayers);
  RewriteOptions options = Int8(BothSides());
  options.kv_cache->type = CacheType::kInt4;
  options.kv_cache->scale_per_tensor = true;
  ASSERT_TRUE(RewriteGraph(graph, options).ok());
  EXPECT_EQ(graph.ElementType("past_k"), onnx::TensorProto::UINT8);
  EXPECT_EQ(graph.Shape("past_k")->back(), 4);
  for (const Node* node : graph.nodes()) {
    if (node->op_type() == "GroupQueryAttention") {
      EXPECT_EQ(FindAttribute(*node, "v_quant_type")->s(), "PER_TENSOR");
    }
  }
}

TEST(KvCache, OfSixteenBitsHasNoScale) {
  Graph graph = GraphOf(kTwoLayers);
  ASSERT_TRUE(RewriteGraph(graph, Narrow(CacheType::kBf16)).ok());
  EXPECT_EQ(graph.ElementType("present_v"), onnx::TensorProto::BFLOAT16);
  EXPECT_THAT(ToText(graph.Copy()), testing::Not(testing::HasSubstr("quant_type")));
}

TEST(KvCache, LeavesTheRowsToBeCounted) {
  for (const char* rows :
       {"rows = Shape(past_k) {start=2, end=3}\n", "shape = Shape(present_v)\nrows = Gather(shape, two)\n"}) {
    Graph graph = GraphOf(std::string(kTwoLayers) + "output rows i64[1]\n" + rows);
    ASSERT_TRUE(RewriteGraph(graph, Narrow(CacheType::kFp16)).ok());
    EXPECT_EQ(graph.ElementType("past_k"), onnx::TensorProto::FLOAT16) << rows;
  }
}

TEST(KvCache, OfIntegersNeedsACalibration) {
  Graph graph = GraphOf(kTwoLayers);
  EXPECT_EQ(RewriteGraph(graph, Narrow(CacheType::kInt4)).status().message(),
            "option 'kv_cache' = 'int4': no scale suits the keys and values of every model; needs option 'calibrate'");
}

TEST(KvCache, NeedsKvsharesOps) {
  Graph graph = GraphOf(kTwoLayers);
  RewriteOptions options = Narrow(CacheType::kFp8);
  options.target = Target::kOrt;
  EXPECT_EQ(RewriteGraph(graph, options).status().message(),
            "option 'kv_cache' = 'fp8': ONNX Runtime's layers do not borrow such a cache; needs option 'target' = "
            "'kvshare'");
}

}  // namespace
}  // namespace kvshare::graph
