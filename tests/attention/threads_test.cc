// The kernels on several threads at once: the same bits as on one, and nothing for ThreadSanitizer to report.
#include <gtest/gtest.h>

#include <thread>

#include "kvshare/attend.h"
#include "tests/support/problem.h"

namespace kvshare {
namespace {

using testing::Array;
using testing::Problem;

constexpr int kThreads = 8;

// Runs body(0) ... body(kThreads - 1), each on a thread of its own.
template <typename Body>
void OnThreads(const Body& body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back([&body, i] { body(i); });
  for (std::thread& thread : threads) thread.join();
}

// Threads take units one after another, as those of a pool do.
ParallelFor Threaded() {
  return {nullptr, [](void*, int64_t n, void (*body)(void*, int64_t), void* arg) {
            std::atomic<int64_t> next{0};
            OnThreads([&](int) {
              for (int64_t i = next++; i < n; i = next++) body(arg, i);
            });
          }};
}

// Decoding with splits that one thread merges or several, and prefill with many units.
std::vector<Problem> Problems() {
  std::vector<Problem> problems(3);
  problems[0].B = 2;
  problems[0].T = 3000;
  problems[1].S = 300;
  problems[1].T = 400;
  problems[1].window = 50;
  problems[1].type = problems[1].kv_type = DType::kF16;
  problems[2].T = 3000;
  problems[2].D = 512;
  for (Problem& p : problems) {
    p.rotary_half = 8;
    p.Fill();
  }
  return problems;
}

TEST(Threads, ThatShareTheUnitsOfACallGiveTheBitsOfOne) {
  for (Problem& p : Problems()) {
    Array alone, together;
    AttentionCall one = p.Call(alone);
    AttentionCall many = p.Call(together);
    WorkspacePool pool;
    ASSERT_TRUE(Attend(one, ParallelFor::Serial(), pool).ok());
    ASSERT_TRUE(Attend(many, Threaded(), pool).ok());
    EXPECT_EQ(alone.bytes, together.bytes);
  }
}

TEST(Threads, ThatCallAtOnceWithOnePoolGiveTheBitsOfOne) {
  for (Problem& p : Problems()) {
    Array alone;
    AttentionCall one = p.Call(alone);
    WorkspacePool pool;
    ASSERT_TRUE(Attend(one, ParallelFor::Serial(), pool).ok());
    std::vector<Array> outputs(kThreads);
    std::vector<AttentionCall> calls;
    for (Array& output : outputs) calls.push_back(p.Call(output));
    OnThreads([&](int i) {
      for (int round = 0; round < 3; ++round) EXPECT_TRUE(Attend(calls[i], ParallelFor::Serial(), pool).ok());
    });
    for (const Array& output : outputs) EXPECT_EQ(alone.bytes, output.bytes);
  }
}

TEST(Threads, ThatShareAnAppendGiveTheBitsOfOne) {
  std::mt19937 random(5);
  const int64_t B = 2, H = 2, S = 3, D = 40, past_rows = 2000;
  Array past(DType::kF32, B * H * past_rows * D), fresh(DType::kF32, B * S * H * D);
  past.Fill(random, 1);
  fresh.Fill(random, 1);
  const int64_t past_length[] = {past_rows, 17};
  const auto append = [&](const ParallelFor& parallel) {
    Array present(DType::kF32, B * H * (past_rows + S) * D);
    AppendCall call;
    call.past = HeadsView::Bnsh(past.data(), past.type, B, H, past_rows, D);
    call.fresh = HeadsView::Bsnh(fresh.data(), fresh.type, B, S, H, D);
    call.present = MutableHeadsView::Bnsh(present.data(), present.type, B, H, past_rows + S, D);
    call.past_length = past_length;
    EXPECT_TRUE(CheckAppend(call, "test").ok());
    WorkspacePool pool;
    EXPECT_TRUE(Append(call, parallel, pool).ok());
    return present.bytes;
  };
  EXPECT_EQ(append(ParallelFor::Serial()), append(Threaded()));
}

// Tasks in the opposite order: what threads may do, without the luck.
ParallelFor Backwards() {
  return {nullptr, [](void*, int64_t n, void (*body)(void*, int64_t), void* arg) {
            for (int64_t i = n; i-- > 0;) body(arg, i);
          }};
}

TEST(Threads, ThatMoveRowsInPlaceGiveTheBitsOfOne) {
  std::mt19937 random(5);
  const int64_t H = 2, D = 16, rows = 4096;
  Array past(DType::kF32, H * rows * D), fresh(DType::kF32, H * D);
  past.Fill(random, 1);
  fresh.Fill(random, 1);
  const int64_t past_length[] = {rows}, skip[] = {700}, length[] = {rows + 1 - 700};
  const auto append = [&](const ParallelFor& parallel) {
    auto present = past.bytes;
    AppendCall call;
    call.past = HeadsView::Bnsh(present.data(), past.type, 1, H, rows, D);
    call.fresh = HeadsView::Bsnh(fresh.data(), past.type, 1, 1, H, D);
    call.present = MutableHeadsView::Bnsh(present.data(), past.type, 1, H, rows, D);
    call.past_length = past_length;
    call.skip = skip;
    call.length = length;
    EXPECT_TRUE(CheckAppend(call, "test").ok()) << CheckAppend(call, "test").message();
    WorkspacePool pool;
    EXPECT_TRUE(Append(call, parallel, pool).ok());
    return present;
  };
  const auto want = append(ParallelFor::Serial());
  EXPECT_EQ(want, append(Backwards()));
  EXPECT_EQ(want, append(Threaded()));
}

}  // namespace
}  // namespace kvshare
