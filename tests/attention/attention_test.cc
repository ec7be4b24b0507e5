#include <hwy/targets.h>

#include <random>
#include <thread>

#include "attention/kernel_table.h"
#include "kvshare/attend.h"
#include "kvshare/oracle.h"
#include "tests/support/every_target.h"
#include "tests/support/problem.h"

namespace kvshare {
namespace {

using testing::Array;
using testing::Attended;
using testing::Combinations;
using testing::EveryTarget;
using testing::ExpectClose;
using testing::ExpectMatchesOracle;
using testing::Problem;

constexpr double kF32 = 5e-6;  // relative to the largest output of the row
constexpr double kF16 = 1e-3;  // one rounding of the output
constexpr double kBF16 = 8e-3;

// int8, int4: queries and weights are rounded to 24 bits beside their largest where the target multiplies bytes.
constexpr double kCodes = 1e-4;

// Of bf16 caches, where the target may round weights to bf16, too.
constexpr double kBF16Weights = 1.6e-2;

double ToleranceOf(DType type, DType kv_type = DType::kF32) {
  if (type == DType::kBF16 && kv_type == DType::kBF16) return kBF16Weights;
  if (type == DType::kF32) return testing::HoldsIntegers(kv_type) ? kCodes : kF32;
  return type == DType::kF16 ? kF16 : kBF16;
}

KVSHARE_ON_EVERY_TARGET();

TEST_P(EveryTarget, IsTheOneThatRuns) { EXPECT_STREQ(SimdTarget(), hwy::TargetName(GetParam())); }

TEST_P(EveryTarget, EveryHeadSizeGroupAndTypeMatchesTheOracle) {
  Combinations combinations;
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16})
    for (const int64_t D : {8, 20, 64, 80, 256, 272})
      for (const int64_t group : {1, 2, 3, 4, 7, 8, 16})
        for (const int64_t S : {1, 5}) {
          if (!combinations.Take()) continue;
          Problem p;
          p.Hkv = 2;
          p.Hq = 2 * group;
          p.D = D;
          p.S = S;
          p.T = 71;
          p.type = p.kv_type = type;
          p.scale = 0.5F / std::sqrt(static_cast<float>(D));
          p.Fill();
          SCOPED_TRACE(::testing::Message() << NameOf(type) << " D " << D << " group " << group << " S " << S);
          ExpectMatchesOracle(p, ToleranceOf(type, type));
        }
}

TEST_P(EveryTarget, QuantizedCachesMatchTheOracle) {
  Combinations combinations;
  for (const DType type : {DType::kF32, DType::kF16})
    for (const DType kv_type : {DType::kI8, DType::kI4, DType::kF8E4M3})
      for (const int64_t D : {7, 20, 64, 80, 256})
        for (const int64_t group : {1, 2, 4, 8})
          for (const int64_t S : {1, 5}) {
            if (!combinations.Take()) continue;
            Problem p;
            p.Hkv = 2;
            p.Hq = 2 * group;
            p.D = D;
            p.S = S;
            p.T = 71;
            p.type = type;
            p.kv_type = kv_type;
            p.per_channel = group % 4 == 0;
            p.bsnh = group == 2;
            p.scale = 0.5F / std::sqrt(static_cast<float>(D));
            p.Fill();
            SCOPED_TRACE(::testing::Message()
                         << NameOf(type) << "/" << NameOf(kv_type) << " D " << D << " group " << group << " S " << S);
            ExpectMatchesOracle(p, ToleranceOf(type, kv_type));
          }
}

// Targets without the instructions take other rows, so each is forced; there Highway puts them together of others.
TEST_P(EveryTarget, DotProductsOfEveryRowMatchTheOracle) {
  for (const TileKernelRow& row : TileKernels()) {
    if (row.products == Products::kFma) continue;
    ForceTileKernelForTest(row.name);
    std::mt19937 random(11);
    const auto pick = [&](std::initializer_list<int64_t> from) { return from.begin()[random() % from.size()]; };
    for (int round = 0; round < testing::Rounds(60); ++round) {
      Problem p;
      p.seed = random();
      p.S = pick({1, 2, 7, 40});
      const bool many = p.S == 40;  // rows: the oracle would take seconds for two sequences
      p.B = many ? 1 : pick({1, 2});
      p.Hkv = many ? 1 : pick({1, 2});
      p.Hq = p.Hkv * pick({1, 3, 4, 8});
      p.T = p.S + static_cast<int64_t>(random() % 300);
      p.D = pick({8, 17, 20, 64, 80, 129, 256});
      p.Dv = pick({0, 7, 24, 100});
      p.window = pick({0, 0, 5, 64});
      p.softcap = pick({0, 0, 5}) == 5 ? 5.0F : 0.0F;
      p.bsnh = pick({0, 1}) == 1;
      p.per_channel = pick({0, 1}) == 1;
      p.scale = 0.5F / std::sqrt(static_cast<float>(p.D));
      p.kv_type = row.type;
      p.type = row.type == DType::kBF16 ? DType::kBF16 : DType::kF32;
      p.Fill();
      if (pick({0, 0, 1}) == 1) p.AddSinks();
      if (pick({0, 0, 1}) == 1) p.AddBias(DType::kBool, pick({0, 1}) == 1);
      SCOPED_TRACE(::testing::Message() << row.name << " round " << round << " S " << p.S << " T " << p.T << " D "
                                        << p.D << " Dv " << p.Dv << " window " << p.window);
      ExpectMatchesOracle(p, ToleranceOf(p.type, p.kv_type));
      if (HasFatalFailure()) break;
    }
  }
  ForceTileKernelForTest("");
}

TEST(Decode, ANanInAnInt8QueryIsNotHidden) {
  Problem p;
  p.kv_type = DType::kI8;
  p.Fill();
  p.query.Set(3, std::numeric_limits<double>::quiet_NaN());
  const Array out = Attended(p);
  EXPECT_TRUE(std::isnan(out.Get(0)));
  EXPECT_FALSE(std::isnan(out.Get(p.D)));  // the next head's
}

TEST_P(EveryTarget, EveryF8CodeIsTheOraclesNumber) {
  // One key a code, seen by one row each: the value row comes out as it is.
  Problem p;
  p.S = p.T = 256;
  p.Hq = 1;
  p.D = 16;
  p.window = 1;
  p.kv_type = DType::kF8E4M3;
  p.Fill();
  for (int64_t i = 0; i < p.value.size(); ++i)
    p.value.bytes[i] = static_cast<std::byte>(i / p.D % 128 == 127 ? 0 : i / p.D);  // NaN has its own test
  for (auto& code : p.key.bytes) code = std::byte{0};
  const Array out = Attended(p);
  for (int64_t i = 0; i < out.size(); ++i) {
    const double want = p.value.Get(i) * p.value_scale[0];
    EXPECT_EQ(out.Get(i), static_cast<float>(want)) << i / p.D;
  }
}

TEST_P(EveryTarget, AnF8NanIsNan) {
  for (const int code : {0x7F, 0xFF}) {
    Problem p;
    p.kv_type = DType::kF8E4M3;
    p.Fill();
    p.value.bytes[3] = static_cast<std::byte>(code);
    const Array out = Attended(p);
    for (int64_t i = 0; i < out.size(); ++i) EXPECT_EQ(std::isnan(out.Get(i)), i % p.D == 3) << i;
  }
}

// Whole and broken blocks of rows, vectors of channels, strips of V and tiles of keys.
TEST_P(EveryTarget, WideBlocksMatchTheOracleForAnyTail) {
  Combinations combinations;
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16})
    for (const int64_t D : {8, 20, 64, 80, 272})
      for (const auto& [group, S] : {std::pair<int64_t, int64_t>{1, 83}, {3, 32}, {7, 12}, {8, 37}})
        for (const int64_t window : {0, 40}) {
          if (!combinations.Take()) continue;
          Problem p;
          p.Hkv = 2;
          p.Hq = 2 * group;
          p.D = D;
          p.Dv = D == 80 ? 72 : D;
          p.S = S;
          p.T = 171;
          p.window = window;
          p.type = p.kv_type = type;
          p.scale = 0.5F / std::sqrt(static_cast<float>(D));
          p.Fill();
          SCOPED_TRACE(::testing::Message()
                       << NameOf(type) << " D " << D << " group " << group << " S " << S << " window " << window);
          ExpectMatchesOracle(p, ToleranceOf(type, type));
        }
}

TEST_P(EveryTarget, MasksOfAnyKeyStrideMatchTheOracle) {
  for (const DType type : {DType::kBool, DType::kF32, DType::kF16})
    for (const int64_t stride : {0, 2})
      for (const int64_t S : {1, 3, 40}) {
        Problem p;
        p.S = S;
        p.T = 77;
        p.D = 16;
        p.Fill();
        p.AddBias(type, false);
        Array truth, got;
        AttentionCall want_call = p.Call(truth);
        AttentionCall got_call = p.Call(got);
        for (AttentionCall* call : {&want_call, &got_call}) {
          call->mask.query_stride = 1;
          call->mask.key_stride = stride;
          call->mask.keys = stride == 0 ? p.T : (S * p.T - S) / stride;
        }
        AttendOracle(want_call);
        WorkspacePool pool;
        ASSERT_TRUE(Attend(got_call, ParallelFor::Serial(), pool).ok());
        SCOPED_TRACE(::testing::Message() << NameOf(type) << " stride " << stride << " S " << S);
        ExpectClose(truth, got, p.Dv, kF32);
      }
}

// Many queries and few keys: cross-attention, and the first tokens of a prompt.
TEST_P(EveryTarget, FewKeysMatchTheOracle) {
  Combinations combinations;
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8, DType::kI4, DType::kF8E4M3})
    for (const int64_t T : {1, 2, 8, 16, 17})
      for (const int64_t D : {8, 33, 160}) {
        if (!combinations.Take()) continue;
        Problem p;
        p.B = 2;
        p.Hkv = 2;
        p.Hq = 10;
        p.S = 61;
        p.T = T;
        p.D = D;
        p.kv_type = type;
        p.type = IsQuantized(type) ? DType::kF32 : type;
        p.causal = false;
        p.Fill();
        SCOPED_TRACE(::testing::Message() << NameOf(type) << " T " << T << " D " << D);
        ExpectMatchesOracle(p, ToleranceOf(p.type, p.kv_type));
      }
}

// Each head's values on a scale of their own: no row hides behind a larger one.
TEST_P(EveryTarget, RowsOfAnySizeMatchTheOracle) {
  for (const DType type : {DType::kF32, DType::kBF16, DType::kI8, DType::kI4, DType::kF8E4M3})
    for (const int64_t S : {1, 5, 30}) {
      Problem p;
      p.Hkv = 7;
      p.Hq = 28;
      p.S = S;
      p.T = 150;
      p.kv_type = type;
      p.type = IsQuantized(type) ? DType::kF32 : type;
      p.per_channel = IsQuantized(type);
      p.Fill();
      for (int64_t h = 0; h < p.Hkv; ++h) {
        const double size = std::pow(10.0, static_cast<double>(h) - 3);
        for (int64_t i = 0; i < p.T * p.Dv && !IsQuantized(type); ++i)
          p.value.Set(h * p.T * p.Dv + i, p.value.Get(h * p.T * p.Dv + i) * size);
        for (int64_t d = 0; d < p.Dv && IsQuantized(type); ++d) p.value_scale[h * p.Dv + d] *= static_cast<float>(size);
      }
      SCOPED_TRACE(::testing::Message() << NameOf(type) << " S " << S);
      ExpectMatchesOracle(p, ToleranceOf(p.type, p.kv_type));
    }
}

// e^x of their difference is no float: only the largest of all splits can be what they are merged by.
TEST_P(EveryTarget, SplitsWhoseScoresAreFarApartMatchTheOracle) {
  Problem p;
  p.Hq = 8;
  p.Hkv = 1;
  p.T = 4096;
  p.D = 16;
  p.scale = 1;
  p.Fill();
  for (int64_t i = 0; i < p.query.size(); ++i) p.query.Set(i, 1);
  for (int64_t i = p.key.size() * 3 / 4; i < p.key.size(); ++i) p.key.Set(i, 10);
  ExpectMatchesOracle(p, kF32);
}

TEST_P(EveryTarget, RandomSpecsMatchTheOracle) {
  std::mt19937 random(20261124);
  const auto pick = [&](std::initializer_list<int64_t> of) { return of.begin()[random() % of.size()]; };
  for (int round = 0; round < testing::Rounds(300); ++round) {
    Problem p;
    p.seed = random();
    p.B = pick({1, 2, 3});
    p.Hkv = pick({1, 2});
    p.Hq = p.Hkv * pick({1, 3, 4, 8});
    p.S = pick({1, 1, 2, 9, 33, 97});
    p.T = p.S + pick({0, 1, 31, 64, 300, 700});
    p.D = p.S <= 9 ? pick({16, 24, 64, 256}) : pick({16, 24, 64});
    p.Dv = pick({0, 16, 40});
    p.window = pick({0, 0, 1, 7, 64, 513});
    p.causal = p.window > 0 || pick({0, 1, 1}) == 1;
    p.type = static_cast<DType>(pick({0, 0, 1, 2}));
    p.kv_type =
        pick({0, 1}) == 0
            ? p.type
            : static_cast<DType>(pick({0, 1, 2, static_cast<int64_t>(DType::kI8), static_cast<int64_t>(DType::kI4),
                                       static_cast<int64_t>(DType::kF8E4M3)}));
    p.per_channel = pick({0, 1}) == 1;
    p.bsnh = pick({0, 1}) == 1;
    p.scale = 0.3F;
    p.softcap = pick({0, 0, 1}) == 1 ? 2.5F : 0.0F;
    p.smooth = pick({0, 0, 1}) == 1;
    p.rotary_half = pick({0, 8, 5, p.D / 2});
    p.interleaved = pick({0, 1}) == 1;
    for (int64_t b = 0; b < p.B; ++b) p.length.push_back(p.S + static_cast<int64_t>(random() % (p.T - p.S + 1)));
    p.Fill();
    if (pick({0, 0, 1}) == 1) p.AddSinks();
    if (pick({0, 0, 1}) == 1) p.AddNorm();
    if (pick({0, 0, 1}) == 1)
      for (int64_t b = 0; b < p.B; ++b) p.query_length.push_back(static_cast<int64_t>(random() % (p.S + 1)));
    p.show_scores = pick({0, 1}) == 1;
    p.stage = static_cast<ScoreStage>(pick({0, 1, 2, 3}));
    if (pick({0, 1}) == 1) p.outside = 0;
    const int64_t mask = pick({0, 0, 1, 2, 3});
    if (mask == 1) p.AddBias(DType::kBool, pick({0, 1}) == 1);
    if (mask == 2) p.AddBias(DType::kF32, pick({0, 1}) == 1);
    if (mask == 3) p.AddBias(p.type, pick({0, 1}) == 1);
    SCOPED_TRACE(::testing::Message() << "round " << round << " seed " << p.seed << " S " << p.S << " T " << p.T
                                      << " D " << p.D << " Dv " << p.Dv << " window " << p.window << " "
                                      << NameOf(p.type) << "/" << NameOf(p.kv_type) << " mask " << mask << " scores "
                                      << (p.show_scores ? static_cast<int>(p.stage) : -1));
    ExpectMatchesOracle(p, ToleranceOf(p.type, p.kv_type));
    if (HasFatalFailure()) return;
  }
}

TEST_P(EveryTarget, KeyMasksOfAnyPatternMatchTheOracle) {
  std::mt19937 random(7);
  for (int round = 0; round < testing::Rounds(200); ++round) {
    Problem p;
    p.seed = random();
    p.B = 2;
    p.Hq = 4;
    p.D = 16;
    p.S = 1 + random() % 9;
    p.T = p.S + random() % 150;
    p.window = round % 3 == 0 ? 0 : 1 + random() % 40;
    p.causal = p.window > 0 || round % 2 == 0;
    p.ahead = round % 5 == 0 ? random() % 20 : 0;
    p.show_scores = round % 4 == 0;
    p.stage = static_cast<ScoreStage>(round / 4 % 4);
    p.Fill();
    p.key_mask = Array(round % 3 == 0 ? DType::kI64 : round % 3 == 1 ? DType::kI32 : DType::kBool, p.B * p.T);
    for (int64_t b = 0; b < p.B; ++b) {
      const int64_t left = random() % 3 == 0 ? random() % p.T : 0;
      const int64_t right = random() % 3 == 0 ? random() % p.T : 0;
      const int64_t hole = random() % 2 == 0 ? 2 + random() % 5 : 0;
      for (int64_t j = 0; j < p.T; ++j) {
        const bool keep = j >= left && j < p.T - right && (hole == 0 || j % hole != 1);
        p.key_mask.bytes[(b * p.T + j) * SizeOf(p.key_mask.type)] = static_cast<std::byte>(keep ? 1 : 0);
      }
    }
    SCOPED_TRACE(::testing::Message() << "round " << round << " S " << p.S << " T " << p.T << " window " << p.window);
    ExpectMatchesOracle(p, kF32);
    if (HasFatalFailure()) return;
  }
}

TEST(Batch, OfNoneWritesNothing) {
  Problem p;
  p.B = 0;
  p.Fill();
  Array out;
  AttentionCall call = p.Call(out);
  ASSERT_TRUE(CheckAttention(call, "test").ok());
  WorkspacePool pool;
  EXPECT_TRUE(Attend(call, ParallelFor::Serial(), pool).ok());
}

TEST(Workspace, IsAllocatedOnceAndThenReused) {
  Problem p;
  p.T = 2048;
  p.Fill();
  Array out;
  AttentionCall call = p.Call(out);
  WorkspacePool pool;
  ASSERT_TRUE(Attend(call, ParallelFor::Serial(), pool).ok());
  const int64_t warm = pool.allocations();
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(Attend(call, ParallelFor::Serial(), pool).ok());
  EXPECT_EQ(pool.allocations(), warm);
}

// Units run on a thread of their own, as a pool's do: what they threw there would end the process.
ParallelFor Elsewhere() {
  return {nullptr, [](void*, int64_t n, void (*body)(void*, int64_t), void* arg) {
            std::thread([=] {
              for (int64_t i = 0; i < n; ++i) body(arg, i);
            }).join();
          }};
}

TEST(Workspace, ThatDoesNotFitIntoMemoryIsAnErrorOnWhateverThread) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers end the process where an allocation fails";
#endif
  Problem p;
  p.T = 1;
  p.Fill();
  Array out;
  AttentionCall call = p.Call(out);
  // No memory lies behind these extents; the scratch comes before any element is read.
  call.query.head_size = call.key.head_size = call.value.head_size = call.output.head_size = int64_t{1} << 44;
  ASSERT_TRUE(CheckAttention(call, "test").ok());
  WorkspacePool pool;
  for (const ParallelFor& parallel : {ParallelFor::Serial(), Elsewhere()}) {
    const Status status = Attend(call, parallel, pool);
    EXPECT_EQ(status.code(), StatusCode::kInternal);
    EXPECT_EQ(status.message(), "out of memory for the scratch of an attention call");
  }
}

// Units run last to first, as threads might.
ParallelFor Backwards() {
  return {nullptr, [](void*, int64_t n, void (*body)(void*, int64_t), void* arg) {
            for (int64_t i = n; i-- > 0;) body(arg, i);
          }};
}

TEST(Parallel, BitsDoNotDependOnTheOrderOfUnits) {
  Problem p;
  p.T = 5000;
  p.Fill();
  Array first, second;
  AttentionCall a = p.Call(first);
  AttentionCall b = p.Call(second);
  WorkspacePool pool;
  ASSERT_TRUE(Attend(a, ParallelFor::Serial(), pool).ok());
  ASSERT_TRUE(Attend(b, Backwards(), pool).ok());
  EXPECT_EQ(first.bytes, second.bytes);
}

TEST(KernelTable, EveryRowServesItsTypeWhenForced) {
  for (const TileKernelRow& row : TileKernels()) {
    ForceTileKernelForTest(row.name);
    for (const int64_t D : {40, 1100}) {
      Problem p;
      p.Hq = 6;
      p.S = 3;
      p.D = D;
      p.kv_type = row.type;
      p.type = IsQuantized(row.type) ? DType::kF32 : row.type;
      p.Fill();
      SCOPED_TRACE(::testing::Message() << row.name << " D " << D);
      ExpectMatchesOracle(p, ToleranceOf(p.type, p.kv_type));
    }
  }
  ForceTileKernelForTest("");
}

TEST(KernelTable, AForcedRowThatCannotServeIsAnErrorThatListsTheOnesThatCan) {
  ForceTileKernelForTest("F16Rows8");
  Problem p;
  p.Fill();
  Array out;
  AttentionCall call = p.Call(out);
  WorkspacePool pool;
  const Status status = Attend(call, ParallelFor::Serial(), pool);
  ForceTileKernelForTest("");
  EXPECT_EQ(status.code(), StatusCode::kRefused);
  EXPECT_EQ(status.message(),
            "KVSHARE_FORCE_KERNEL is 'F16Rows8', which does not serve f32 K/V; have F32Rows1, F32Rows2, F32Rows4, "
            "F32Rows8, F32Rows48");
}

TEST(Attention, LeavesF64ToTheOracle) {
  Problem p;
  p.type = p.kv_type = DType::kF64;
  p.Fill();
  Array out;
  const AttentionCall call = p.Call(out);
  ASSERT_TRUE(CheckAttention(call, "test").ok()) << CheckAttention(call, "test").message();
  WorkspacePool pool;
  const Status status = Attend(call, ParallelFor::Serial(), pool);
  EXPECT_EQ(status.code(), StatusCode::kRefused);
  EXPECT_EQ(status.message(), "no SIMD kernel for f64; AttendOracle and AppendOracle compute it");
}

TEST(KernelTable, AnEmptyNameForcesNothing) {
  ForceTileKernelForTest("");
  Problem p;
  p.Fill();
  ExpectMatchesOracle(p, kF32);
  ForceTileKernelForTest("");
}

}  // namespace
}  // namespace kvshare
