// Models whose caches hold codes, once more in floats.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "graph/rewrite_graph.h"
#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

constexpr std::string_view kInputs = R"(
input query f32[B,S,32]
input key f32[B,S,8]
input past_k f32[B,1,P,8]
input past_v f32[B,1,P,8]
input seqlens i32[B]
input total i32[1]
)";

const std::string kCodes = std::string(kInputs) + R"(
import kvshare 1
output out1 f32[B,S,32]
output present_k f32[B,1,T,8]
output present_v f32[B,1,T,8]
const scales f32[8] = 0.5
out0, present_k, present_v = kvshare.GroupQueryAttention(query, key, key, past_k, past_v, seqlens, total, _, _, _, _, _, scales, scales) {num_heads=4, kv_num_heads=1, kv_cache_bit_width=8, local_window_size=4}
out1 = kvshare.GroupQueryAttention(out0, _, _, _, _, seqlens, total, _, _, _, _, _, scales, scales, _, _, _, present_k, present_v) {num_heads=4, kv_num_heads=1, kv_cache_bit_width=8}
)";

// The twin of `text`, whose caches hold int8.
Result<std::optional<FloatTwin>> TwinOf(std::string_view text, int type = onnx::TensorProto::INT8) {
  auto model = ParseTextGraph(text);
  EXPECT_TRUE(model.ok()) << model.status().message();
  for (auto* group : {model->mutable_graph()->mutable_input(), model->mutable_graph()->mutable_output()})
    for (auto& value : *group)
      if (value.name().starts_with("past") || value.name().starts_with("present"))
        value.mutable_type()->mutable_tensor_type()->set_elem_type(type);
  const std::string path = fmt::format("{}/codes_{}.onnx", testing::TempDir(), ::getpid());  // tests run side by side
  std::ofstream(path, std::ios::binary) << model->SerializeAsString();
  auto twin = MakeFloatTwin(path);
  std::filesystem::remove(path);
  return twin;
}

TEST(FloatTwin, AppendsFloatsAndReadsWhatItIsGiven) {
  const auto twin = TwinOf(kCodes);
  ASSERT_TRUE(twin.ok()) << twin.status().message();
  ASSERT_TRUE(twin->has_value());
  onnx::ModelProto model;
  ASSERT_TRUE(model.ParseFromString((*twin)->model));
  const std::string text = ToText(model);
  EXPECT_THAT(text,
              testing::HasSubstr("out0_unread, present_k, present_v = kvshare.GroupQueryAttention(query, key, key, "
                                 "past_k, past_v, seqlens, total"));
  EXPECT_THAT(text, testing::ContainsRegex("out0 = kvshare.GroupQueryAttention\\(query, _, _, _, _, seqlens, total, "
                                           ".*present_k_read, present_v_read\\) .*local_window_size=4"));
  EXPECT_THAT(text,
              testing::ContainsRegex("out1 = kvshare.GroupQueryAttention\\(out0, .*present_k_read, present_v_read"));
  EXPECT_THAT(text, testing::Not(testing::HasSubstr("kv_cache_bit_width")));
  EXPECT_THAT(text, testing::Not(testing::HasSubstr("scales")));
  ASSERT_EQ((*twin)->caches.size(), 2U);
  const TwinCache& cache = (*twin)->caches[1];
  EXPECT_EQ(cache.past, "past_v");
  EXPECT_EQ(cache.present, "present_v");
  EXPECT_EQ(cache.read, "present_v_read");
  EXPECT_EQ(cache.scales, std::vector<float>(8, 0.5F));
  EXPECT_EQ(cache.head_size, 8);
  for (const auto& input : model.graph().input()) {
    if (!input.name().starts_with("past") && !input.name().starts_with("present")) continue;
    EXPECT_EQ(input.type().tensor_type().elem_type(), onnx::TensorProto::FLOAT) << input.name();
  }
}

TEST(FloatTwin, OfCachesOfFloatsThereIsNone) {
  const auto twin = TwinOf(kCodes, onnx::TensorProto::FLOAT);
  ASSERT_TRUE(twin.ok()) << twin.status().message();
  EXPECT_FALSE(twin->has_value());
}

class NoFloatTwin : public testing::TestWithParam<NearMiss> {};

TEST_P(NoFloatTwin, SaysWhy) {
  const auto twin = TwinOf(TwoLayersWith(GetParam().output, GetParam().line, kCodes));
  ASSERT_FALSE(twin.ok());
  EXPECT_EQ(twin.status().message(), GetParam().reason);
}

INSTANTIATE_TEST_SUITE_P(
    NearMisses, NoFloatTwin,
    testing::Values(
        NearMiss{"Sinks", "out0",
                 "input sink f32[4]\nout0, present_k, present_v = kvshare.GroupQueryAttention(query, key, key, past_k, "
                 "past_v, seqlens, total, _, _, _, _, sink, scales, scales) {num_heads=4, kv_num_heads=1}",
                 "GroupQueryAttention 'out0': has an input 11"},
        NearMiss{"Packed", "out0",
                 "input packed f32[B,S,48]\nout0, present_k, present_v = kvshare.GroupQueryAttention(packed, _, _, "
                 "past_k, past_v, seqlens, total, _, _, _, _, _, scales, scales) {num_heads=4, kv_num_heads=1}",
                 "GroupQueryAttention 'out0': has query, key and value in one input; needs three"},
        NearMiss{"ComputedScales", "scales", "input half f32[8]\nscales = Abs(half)",
                 "GroupQueryAttention 'out0': 'scales' is no constant"},
        NearMiss{"NoHeads", "out0",
                 "out0, present_k, present_v = kvshare.GroupQueryAttention(query, key, key, past_k, past_v, seqlens, "
                 "total, _, _, _, _, _, scales, scales) {num_heads=4}",
                 "GroupQueryAttention 'out0': its heads are not known"},
        NearMiss{"BorrowsAsUpstreamDoes", "out1",
                 "const empty f32[1,0,8] = 0\nout1 = kvshare.GroupQueryAttention(out0, empty, empty, present_k, "
                 "present_v, seqlens, total, _, _, _, _, _, scales, scales) {num_heads=4, kv_num_heads=1}",
                 "GroupQueryAttention 'out0': layer 1 borrows its cache in another way than by external_key"},
        NearMiss{"UpstreamsOwn", "out0",
                 "out0, present_k, present_v = com.microsoft.GroupQueryAttention(query, key, key, past_k, past_v, "
                 "seqlens, total, _, _, _, _, _, scales, scales) {num_heads=4, kv_num_heads=1}",
                 "GroupQueryAttention 'out0': is not kvshare::GroupQueryAttention, which alone has such a cache"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(FloatTwin, NeedsPresentsToCompare) {
  const std::string no_presents = std::string(kInputs) + R"(
output out0 f32[B,S,32]
out0 = kvshare.GroupQueryAttention(query, key, key, past_k, past_v, seqlens, total) {num_heads=4, kv_num_heads=1}
)";
  EXPECT_EQ(TwinOf(no_presents).status().message(), "GroupQueryAttention 'out0': has no presents");
}

}  // namespace
}  // namespace kvshare::graph
