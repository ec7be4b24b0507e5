// Scratch memory: what a pool keeps, and what becomes of it.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <thread>
#include <vector>

#include "kvshare/attend.h"

namespace kvshare {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

TEST(WorkspacePool, ReusesWhatFitsAndRegrowsTheLargest) {
  WorkspacePool pool;
  const void* small = WorkspacePool::Lease(pool, 1000).data();
  EXPECT_EQ(WorkspacePool::Lease(pool, 900).data(), small);
  EXPECT_EQ(pool.allocations(), 1);
  EXPECT_EQ(pool.kept_bytes(), 4096U);
  {
    const WorkspacePool::Lease larger(pool, 5000);
  }
  EXPECT_EQ(pool.allocations(), 2);
  EXPECT_EQ(pool.kept_bytes(), 8192U) << "the one block, regrown";
  {
    const WorkspacePool::Lease a(pool, 5000), b(pool, 100);
    EXPECT_EQ(pool.kept_bytes(), 0U);
  }
  EXPECT_EQ(pool.kept_bytes(), 8192U + 4096U);
  EXPECT_EQ(pool.allocations(), 3);
}

TEST(WorkspacePool, HandsOutAnyNumberOfBlocksAtOnce) {
  WorkspacePool pool;
  constexpr int kLeases = 1000;
  for (int round = 0; round < 2; ++round) {
    std::vector<std::unique_ptr<WorkspacePool::Lease>> leases;
    std::vector<void*> data;
    for (int i = 0; i < kLeases; ++i) {
      leases.push_back(std::make_unique<WorkspacePool::Lease>(pool, 64 + i));
      data.push_back(leases.back()->data());
    }
    std::sort(data.begin(), data.end());
    EXPECT_EQ(std::unique(data.begin(), data.end()), data.end()) << "no block twice";
  }
  EXPECT_EQ(pool.kept_bytes(), size_t{4096} * kLeases);
  EXPECT_EQ(pool.allocations(), kLeases);
}

TEST(WorkspacePool, KeepsNoMoreThanItPromises) {
  WorkspacePool pool;
  {
    const WorkspacePool::Lease huge(pool, WorkspacePool::kMostKept + 1);
  }
  EXPECT_EQ(pool.kept_bytes(), 0U);
  {
    std::vector<std::unique_ptr<WorkspacePool::Lease>> leases;
    for (size_t i = 0; i < 100; ++i) leases.push_back(std::make_unique<WorkspacePool::Lease>(pool, kMiB));
  }
  EXPECT_EQ(pool.kept_bytes(), WorkspacePool::kMostKept);
  pool.Trim();
  EXPECT_EQ(pool.kept_bytes(), 0U);
}

// Runs loops on 16 threads, whatever the machine has.
ParallelFor SixteenThreads() {
  return {nullptr, [](void*, int64_t n, void (*body)(void*, int64_t), void* arg) {
            const int64_t threads = std::min<int64_t>(16, n);
            std::vector<std::jthread> all;
            for (int64_t t = 0; t < threads; ++t)
              all.emplace_back([=] {
                for (int64_t i = t; i < n; i += threads) body(arg, i);
              });
          }};
}

// Gemma 4 E2B's layers: 8 query heads of one key-value head, D 256 with a window of 512, or D 512 without; a prompt of
// 4,096 tokens on 16 threads. Every node of the map is one of these two.
TEST(WorkspacePool, KeepsAtMost64MBAfterALongPromptOfE2B) {
  constexpr int64_t kTokens = 4096, kHeads = 8;
  WorkspacePool pool;
  for (const int64_t D : {int64_t{256}, int64_t{512}}) {
    std::vector<float> query(kTokens * kHeads * D, 0.01F), output(query.size());
    std::vector<float> cache(kTokens * D, 0.01F);
    AttentionCall call;
    call.query = HeadsView::Bsnh(query.data(), DType::kF32, 1, kTokens, kHeads, D);
    call.key = call.value = HeadsView::Bnsh(cache.data(), DType::kF32, 1, 1, kTokens, D);
    call.output = MutableHeadsView::Bsnh(output.data(), DType::kF32, 1, kTokens, kHeads, D);
    call.spec.window_right = 0;
    if (D == 256) call.spec.window_left = 511;
    const int64_t length = kTokens;
    call.positions.length = &length;
    ASSERT_EQ(CheckAttention(call, "test").message(), "");
    ASSERT_TRUE(Attend(call, SixteenThreads(), pool).ok());
  }
  EXPECT_GE(pool.kept_bytes(), kMiB);
  EXPECT_LE(pool.kept_bytes(), size_t{64} * 1000 * 1000);
}

}  // namespace
}  // namespace kvshare
