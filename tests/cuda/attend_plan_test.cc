// Which kernel is chosen for a call, what it reads, and what it does without looking at numbers on the device.
#include <memory>

#include "tests/cuda/emulated.h"

namespace kvshare::cuda {
namespace {

using testing::AddKeyMask;
using testing::Become;
using testing::DeviceProblem;
using testing::ExpectClose;
using testing::kLarge;
using testing::kSmall;
using testing::LeftPadded;
using testing::Must;
using testing::Problem;
using testing::ToleranceOf;

class EmulatedReads : public testing::Emulated {};
INSTANTIATE_TEST_SUITE_P(Seeds, EmulatedReads, ::testing::Values(0, 1, 7));

// What the kernels were written for: K and V once a KV head, and only what some row sees.
struct Traffic {
  DType type, cache;
  int64_t D, S;  // 8 rows of each token
};
const Traffic kTraffic[] = {
    {DType::kF16, DType::kF16, 64, 1},     {DType::kF16, DType::kF16, 128, 1},     {DType::kF16, DType::kF16, 256, 1},
    {DType::kF16, DType::kF16, 512, 1},    {DType::kF16, DType::kF16, 256, 2},     {DType::kF16, DType::kF16, 512, 2},
    {DType::kF32, DType::kF32, 128, 1},    {DType::kF32, DType::kF32, 512, 1},     {DType::kF32, DType::kF32, 256, 2},
    {DType::kF32, DType::kF32, 512, 2},    {DType::kF16, DType::kI8, 64, 1},       {DType::kF16, DType::kI8, 512, 1},
    {DType::kBF16, DType::kI8, 512, 2},    {DType::kF16, DType::kI4, 64, 1},       {DType::kF16, DType::kI4, 512, 1},
    {DType::kF16, DType::kF8E4M3, 512, 1}, {DType::kBF16, DType::kF8E4M3, 256, 2}, {DType::kF16, DType::kI4, 512, 2},
    {DType::kF32, DType::kF16, 256, 1},    {DType::kF32, DType::kI8, 512, 1},      {DType::kF32, DType::kI4, 128, 1},
};

TEST_P(EmulatedReads, DecodeReadsEverySeenKeyOnceAndSharesItsBanks) {
  for (const Traffic& of : kTraffic)
    for (const int64_t window : {0, 40}) {
      Problem p;
      p.type = of.type;
      p.kv_type = of.cache;
      p.Hkv = 2;
      p.Hq = 16;
      p.S = of.S;
      p.D = of.D;
      p.T = 200;
      p.length = {170};
      p.window = window;
      p.Fill();
      DeviceProblem device(p);
      gpu::emulation::ResetCounters();
      device.Run();
      const gpu::emulation::Counters counted = gpu::emulation::Counted();
      const AttendPlan plan = device.Plan();
      SCOPED_TRACE(::testing::Message() << plan.kernel->name << " window " << window);
      const int64_t seen = window > 0 ? window + of.S - 1 : 170;
      EXPECT_EQ(plan.splits > 1, seen > plan.kernel->keys);  // not below a turn of a block's warps
      EXPECT_EQ(plan.row_tiles, 1);
      EXPECT_EQ(counted.copied_bytes, 2 * p.Hkv * seen * BytesOf(of.cache, of.D));
      EXPECT_EQ(counted.bank_conflicts, 0);
      const int64_t products = 2 * p.Hkv * of.S * (of.D / 16) * ((seen + 15) / 16);
      EXPECT_EQ(counted.mma, of.type == DType::kF32 ? 0 : products);
      EXPECT_EQ(counted.launches, plan.splits > 1 ? 2 : 1);  // splits, and their merge
    }
}

TEST_P(EmulatedReads, PrefillReadsEverySeenKeyOnceForATileOfRows) {
  for (const int64_t D : {64, 256, 512})
    for (const int64_t window : {0, 30}) {
      Problem p;
      p.type = p.kv_type = DType::kF16;
      p.Hkv = 2;
      p.Hq = 16;
      p.S = 21;
      p.D = D;
      p.T = 150;
      p.length = {120};
      p.window = window;
      p.Fill();
      DeviceProblem device(p);
      const AttendPlan plan = device.Plan();
      gpu::emulation::ResetCounters();
      device.Run();
      int64_t rows = p.Hkv * 8 * p.S;  // of Q, once
      const int64_t tokens = plan.kernel->rows / 8;
      for (int64_t s = 0; s < p.S; s += tokens) {
        const int64_t last = std::min(s + tokens, p.S) - 1, first = 120 - p.S;  // position of token 0
        rows += 2 * p.Hkv * (first + last + 1 - (window > 0 ? first + s - window + 1 : 0));
      }
      SCOPED_TRACE(::testing::Message() << plan.kernel->name << " window " << window);
      EXPECT_EQ(plan.kernel->family, KernelFamily::kPrefill);
      EXPECT_EQ(plan.row_tiles, (8 * p.S + 63) / 64);
      EXPECT_EQ(gpu::emulation::Counted().copied_bytes, rows * BytesOf(p.type, D));
      EXPECT_EQ(gpu::emulation::Counted().bank_conflicts, 0);
    }
}

TEST_P(EmulatedReads, OnlyKeysBetweenTheFirstAndTheLastThatAKeyMaskShowsAreRead) {
  const std::pair<int64_t, int64_t> seen_in_window[] = {{0, 240 - 31}, {40, 40}};
  for (const auto& [window, seen] : seen_in_window) {
    Problem p;
    p.type = p.kv_type = DType::kF16;
    p.T = 240;
    p.D = 256;
    p.window = window;
    p.Fill();
    AddKeyMask(p, DType::kI64, LeftPadded);
    DeviceProblem device(p);
    gpu::emulation::ResetCounters();
    device.Run();
    EXPECT_EQ(gpu::emulation::Counted().copied_bytes, 2 * seen * BytesOf(p.kv_type, p.D));
  }
}

TEST(Splits, FillTheDeviceOnceAndAreNoShorterThanATurn) {
  const auto splits = [](int multiprocessors, int64_t B, int64_t Hkv, int64_t T) {
    Become({multiprocessors, size_t{227} << 10});
    Problem p;
    p.type = p.kv_type = DType::kF16;
    p.B = B;
    p.Hkv = Hkv;
    p.Hq = 8 * Hkv;
    p.T = T;
    p.Fill();
    const AttendPlan plan = DeviceProblem(p).Plan();
    EXPECT_EQ(plan.kernel->keys, 128);
    EXPECT_EQ((size_t{227} << 10) / plan.kernel->shared_bytes, 2U);  // blocks of a multiprocessor
    return plan.splits;
  };
  EXPECT_EQ(splits(2, 1, 1, 1280), 4);
  EXPECT_EQ(splits(2, 2, 1, 1280), 2);
  EXPECT_EQ(splits(2, 1, 2, 1280), 2);
  EXPECT_EQ(splits(2, 3, 2, 1280), 1);    // more tiles than blocks at once
  EXPECT_EQ(splits(66, 1, 1, 1280), 10);  // turns of 128 keys
  EXPECT_EQ(splits(300, 1, 1, 128 * 300), 256);
}

TEST(Splits, OfVeryDifferentScoresMatchTheOracle) {
  Become(kLarge);
  Problem p;
  p.type = p.kv_type = DType::kF16;
  p.T = 900;
  p.scale = 40;
  p.Fill();
  for (int64_t i = 0; i < 300 * p.D; ++i) p.key.Set(i, 0.1 * p.key.Get(i));  // the first split's scores are small
  EXPECT_GT(DeviceProblem(p).Plan().splits, 3);
  testing::ExpectDeviceMatchesOracle(p, ToleranceOf(p.type));
}

TEST(Tiles, AreNotTakenOfMemoryThatLiesAskew) {
  Become(kLarge);
  Problem p;
  p.type = p.kv_type = DType::kF16;
  p.T = 50;
  p.length = {49};
  p.Fill();
  DeviceProblem device(p);
  kvshare::testing::Array truth;
  AttentionCall want = p.Call(truth);
  for (AttentionCall* call : {&want, &device.call})
    for (HeadsView* view : {&call->key, &call->value}) {
      view->data = At(view->data, view->type, 1);
      --view->tokens;
    }
  AttendOracle(want);
  EXPECT_EQ(device.Plan().kernel->family, KernelFamily::kPlain);
  device.Run();
  device.Get(p);
  ExpectClose(truth, device.output, p.Dv, ToleranceOf(p.type));
}

TEST(Tiles, AreNotTakenOfQueriesAndOutputsThatLieAskew) {
  Become(kLarge);
  const auto family_of = [](int64_t S, int64_t query_off, int64_t output_off) {
    Problem p;
    p.type = p.kv_type = DType::kF16;
    p.S = S;
    p.Fill();
    DeviceProblem device(p);
    device.call.query.data = At(device.call.query.data, p.type, query_off);
    device.call.output.data = At(device.call.output.data, p.type, output_off);
    return device.Plan().kernel->family;
  };
  EXPECT_EQ(family_of(1, 2, 2), KernelFamily::kDecodeWarp);
  EXPECT_EQ(family_of(1, 1, 0), KernelFamily::kPlain);
  EXPECT_EQ(family_of(1, 0, 1), KernelFamily::kPlain);
  EXPECT_EQ(family_of(40, 8, 2), KernelFamily::kPrefill);
  EXPECT_EQ(family_of(40, 2, 0), KernelFamily::kDecodeWarp);  // prefill copies queries by 16 bytes
}

TEST(Tiles, AreNotTakenOfRowsThatEndInsideAPiece) {
  Become(kLarge);
  constexpr int64_t kWidth = 56, kHeadSize = 54;
  Problem p;
  p.D = kWidth;
  p.T = 50;
  p.Fill();
  for (int64_t i = 0; i < p.T * kWidth; ++i)  // a piece has them, the row has not
    if (i % kWidth >= kHeadSize) p.key.Set(i, std::numeric_limits<double>::quiet_NaN());
  DeviceProblem device(p);
  kvshare::testing::Array truth;
  AttentionCall want = p.Call(truth);
  for (AttentionCall* call : {&want, &device.call}) {
    for (HeadsView* view : {&call->query, &call->key, &call->value}) view->head_size = kHeadSize;
    call->output.head_size = kHeadSize;
  }
  AttendOracle(want);
  EXPECT_EQ(device.Plan().kernel->family, KernelFamily::kPlain);
  device.Run();
  device.Get(p);
  for (int64_t i = 0; i < truth.size(); ++i) {
    if (i % kWidth >= kHeadSize) continue;
    EXPECT_NEAR(device.output.Get(i), truth.Get(i), 1e-5) << i;
  }
}

TEST(Capture, AGraphServesLengthsThatCameLater) {
  Become(kLarge);
  Problem p;
  p.type = p.kv_type = DType::kF16;
  p.B = 2;
  p.T = 300;
  p.length = {300, 300};
  p.Fill();
  DeviceProblem device(p);
  const AttendPlan plan = device.Plan();
  void* const scratch = device.memory.New(plan.scratch_bytes);
  void* const stream = Must(CreateStream());
  ASSERT_TRUE(BeginCapture(stream).ok());
  ASSERT_TRUE(AttendCuda(plan, stream, scratch).ok());
  EXPECT_FALSE(Allocate(16).ok());
  EXPECT_FALSE(Synchronize(stream).ok());
  const std::unique_ptr<Graph> graph = Must(EndCapture(stream));
  for (const std::vector<int64_t>& length : {std::vector<int64_t>{300, 17}, {1, 299}, {160, 161}}) {
    p.length = length;
    p.query_position = {length[0] - 1, length[1] - 1};
    const size_t bytes = length.size() * sizeof(int64_t);
    ASSERT_TRUE(Upload(const_cast<void*>(device.positions.length.data), p.length.data(), bytes).ok());
    ASSERT_TRUE(Upload(const_cast<void*>(device.positions.query_position.data), p.query_position.data(), bytes).ok());
    ASSERT_TRUE(graph->Replay(stream).ok());
    ASSERT_TRUE(Synchronize(stream).ok());
    device.Get(p);
    kvshare::testing::Array truth;
    AttendOracle(p.Call(truth));
    ExpectClose(truth, device.output, p.Dv, ToleranceOf(p.type));
  }
  ASSERT_TRUE(DestroyStream(stream).ok());
}

TEST(Lengths, AreClampedWhereNobodyCouldCheckThem) {
  Become(kLarge);
  for (const DType type : {DType::kF16, DType::kF32}) {
    Problem p;
    p.type = p.kv_type = type;
    p.B = 2;
    p.length = {64, 0};
    p.query_position = {63, -1};
    p.Fill();
    DeviceProblem device(p);
    const std::vector<int64_t> wild = {int64_t{1} << 40, -5};
    device.positions.length.most = int64_t{1} << 50;  // a caller who knows no better
    ASSERT_TRUE(Upload(const_cast<void*>(device.positions.length.data), wild.data(), 16).ok());
    device.Run();
    device.Get(p);
    kvshare::testing::Array truth;
    AttendOracle(p.Call(truth));
    ExpectClose(truth, device.output, p.Dv, ToleranceOf(type));
  }
}

TEST(Refusals, NameWhatNoKernelServes) {
  Become(kSmall);
  Problem p;
  p.type = p.kv_type = DType::kF64;
  p.Fill();
  Result<AttendPlan> plan = PlanAttend(DeviceProblem(p).call, {}, kSmall, "Attention 'a'");
  EXPECT_EQ(plan.status().message(), "Attention 'a': no CUDA kernel for f64; have f32, f16 and bf16");
  Problem wide;
  wide.D = 20000;
  wide.T = 1;
  wide.Fill();
  plan = PlanAttend(DeviceProblem(wide).call, {}, kSmall, "Attention 'a'");
  EXPECT_EQ(plan.status().code(), StatusCode::kRefused);
  EXPECT_EQ(plan.status().message(),
            "Attention 'a': head sizes 20000 and 20000 need 160512 bytes of a block's memory; the device has 101376");
}

}  // namespace
}  // namespace kvshare::cuda
