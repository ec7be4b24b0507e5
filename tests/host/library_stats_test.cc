#include "host/library_stats.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvshare/doctor.h"

namespace kvshare::host {
namespace {

using ::testing::HasSubstr;

constexpr const char* kJson = R"({"version": "0.1.0", "simd": "AVX3", "ran": 4, "nodes": [
  {"domain": "", "op": "Attention", "node": "a \"b\"", "kernel": "", "ran": 0},
  {"domain": "", "op": "Attention", "node": "b", "kernel": "", "ran": 0},
  {"domain": "kvshare", "op": "GroupQueryAttention", "node": "c", "kernel": "AVX3", "ran": 4}]})";

TEST(ParseStats, ReadsNodes) {
  const auto stats = ParseStats(kJson);
  ASSERT_TRUE(stats.ok()) << stats.status().message();
  EXPECT_EQ(stats->version, "0.1.0");
  EXPECT_EQ(stats->simd, "AVX3");
  ASSERT_EQ(stats->nodes.size(), 3U);
  EXPECT_EQ(stats->nodes[0].node, "a \"b\"");
  EXPECT_EQ(stats->nodes[2].kernel, "AVX3");
  EXPECT_EQ(stats->nodes[2].ran, 4);
}

TEST(ParseStats, AbsentMembersAndMembersOfAnotherTypeReadAsEmpty) {
  const auto stats = ParseStats(R"({"simd": 3, "nodes": [{}, {"op": ["Attention"], "ran": "4"}, {"ran": 1.5}]})");
  ASSERT_TRUE(stats.ok()) << stats.status().message();
  EXPECT_EQ(stats->version + stats->simd, "");
  ASSERT_EQ(stats->nodes.size(), 3U);
  for (const auto& node : stats->nodes) {
    EXPECT_EQ(node.op + node.kernel, "");
    EXPECT_EQ(node.ran, 0);
  }
}

TEST(ParseStats, GarbageIsAnError) {
  for (const char* text : {"", "{", "[1]", "{\"nodes\": }"}) EXPECT_FALSE(ParseStats(text).ok()) << text;
  EXPECT_THAT(ParseStats("[1]").status().message(), HasSubstr("kvshare's counters are no JSON object"));
}

TEST(Doctor, AddsUpNodesByOp) {
  const auto ops = SummarizeOps(*ParseStats(kJson));
  ASSERT_EQ(ops.size(), 2U);
  EXPECT_EQ(ops[0].op, "ai.onnx::Attention");
  EXPECT_EQ(ops[0].nodes, 2);
  EXPECT_EQ(ops[1].op, "kvshare::GroupQueryAttention");
  EXPECT_EQ(ops[1].ran, 4);
  EXPECT_EQ(ops[1].kernels, "AVX3");
}

TEST(KvshareLibrary, AnotherLibraryIsNoKvshareLibrary) {
  const auto library = KvshareLibrary::Open("libc.so.6");
  ASSERT_FALSE(library.ok());
  EXPECT_THAT(library.status().message(), HasSubstr("'libc.so.6' is no kvshare library: it exports no counters"));
  EXPECT_THAT(KvshareLibrary::Open("no/such.so").status().message(), HasSubstr("cannot load the library: no/such.so"));
}

}  // namespace
}  // namespace kvshare::host
