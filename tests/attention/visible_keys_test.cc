// Which keys a call reads, and what rows give that see none.
#include <limits>
#include <string>

#include "kvshare/attend.h"
#include "tests/support/problem.h"

namespace kvshare {
namespace {

using testing::Array;
using testing::Attended;
using testing::ExpectMatchesOracle;
using testing::Problem;

constexpr double kF32 = 2e-6;  // relative to the largest output of the row

// NaN in the rows [begin, end) of K and V: whatever reads them shows it.
void Poison(Problem& p, int64_t begin, int64_t end) {
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t h = 0; h < p.Hkv; ++h)
      for (int64_t t = begin; t < end; ++t)
        for (int64_t d = 0; d < p.D; ++d) {
          const int64_t i = ((b * p.Hkv + h) * p.T + t) * p.D + d;
          p.key.Set(i, std::numeric_limits<double>::quiet_NaN());
          p.value.Set(i, std::numeric_limits<double>::quiet_NaN());
        }
}

TEST(Decode, SlidingWindowIgnoresKeysOlderThanTheWindow) {
  Problem p;
  p.T = 40;
  p.D = 256;
  p.window = 16;
  p.Fill();
  Poison(p, 0, 24);
  ExpectMatchesOracle(p, kF32);
}

TEST(Decode, RowsPastTheLengthAreNeverRead) {
  Problem p;
  p.T = 100;
  p.length = {37};
  p.Fill();
  Poison(p, 37, 100);
  ExpectMatchesOracle(p, kF32);
}

TEST(Decode, AWindowOf512TouchesOnlyItsKeysHoweverLongTheCache) {
  for (const int64_t T : {512, 4096, 32768}) {
    Problem p;
    p.T = T;
    p.D = 16;
    p.window = 512;
    p.Fill();
    Attended(p);
    EXPECT_EQ(p.key_rows_read, 512) << "T " << T;
  }
}

TEST(Decode, KeysAreReadOncePerKvHeadNotOncePerQueryHead) {
  Problem p;
  p.Hq = 16;
  p.Hkv = 2;
  p.T = 3000;
  p.D = 16;
  p.Fill();
  Attended(p);
  EXPECT_EQ(p.key_rows_read, 2 * 3000);
}

TEST(Prefill, AWindowedChunkTouchesOnlyTheWindowBeforeIt) {
  Problem p;
  p.S = 64;
  p.T = 4096;
  p.D = 16;
  p.window = 128;
  p.Fill();
  Attended(p);
  // 64 positions in units of 18 (three blocks of 48 rows) and the rest: each reads 127 earlier keys and its own.
  EXPECT_EQ(p.key_rows_read, 4 * 127 + 64);
}

// Causal, and of windows of keys, both said by the mask alone: 0 keeps, `hidden` hides. One window for all heads, or
// one for each of them.
void AddWindowMask(Problem& p, DType type, const std::vector<int64_t>& windows, double hidden) {
  p.causal = false;
  p.mask_per_head = windows.size() > 1;
  const auto heads = static_cast<int64_t>(windows.size());
  p.mask = Array(type, p.B * heads * p.S * p.T);
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t s = 0; s < p.S; ++s)
        for (int64_t j = 0; j < p.T; ++j) {
          const int64_t distance = p.T - p.S + s - j;
          const bool keep = 0 <= distance && distance < windows[h];
          const int64_t i = ((b * heads + h) * p.S + s) * p.T + j;
          if (type == DType::kBool)
            p.mask.bytes[i] = static_cast<std::byte>(keep ? 1 : 0);
          else
            p.mask.Set(i, keep ? 0 : hidden);
        }
}
void AddWindowMask(Problem& p, DType type, int64_t window, double hidden) {
  AddWindowMask(p, type, std::vector<int64_t>{window}, hidden);
}

TEST(Masks, WhatTheyHideAtBothEndsIsNotRead) {
  struct Case {
    DType type;
    double hidden;
  };
  const double inf = std::numeric_limits<double>::infinity();
  for (const auto& [type, hidden] : {Case{DType::kBool, 0}, Case{DType::kF32, -inf}, Case{DType::kF16, -inf},
                                     Case{DType::kF32, std::numeric_limits<float>::lowest()}, Case{DType::kF16, -65504},
                                     Case{DType::kBF16, -3.38e38}})
    for (const int64_t S : {1, 2, 40}) {
      SCOPED_TRACE(std::string(NameOf(type)) + " " + std::to_string(hidden) + " S " + std::to_string(S));
      Problem p;
      p.B = 2;
      p.S = S;
      p.T = 1001;
      p.D = 16;
      p.Fill();
      AddWindowMask(p, type, 77, hidden);
      ExpectMatchesOracle(p, kF32);
      p.key_rows_read = 0;
      Poison(p, 0, p.T - S - 76);
      const Array out = Attended(p);
      for (int64_t i = 0; i < out.size(); ++i) ASSERT_FALSE(std::isnan(out.Get(i)));
      if (S == 1) {
        EXPECT_EQ(p.key_rows_read, p.B * p.Hkv * 77);
      }
    }
}

TEST(Masks, AHoleOrABiasInOneRowIsNotLostAmongRowsThatHaveNone) {
  for (const double odd : {-std::numeric_limits<double>::infinity(), 1.5})
    for (const int64_t S : {1, 2, 40}) {
      Problem p;
      p.S = S;
      p.T = 300;
      p.D = 16;
      p.Fill();
      AddWindowMask(p, DType::kF32, 77, std::numeric_limits<float>::lowest());
      p.mask.Set((S / 2) * p.T + p.T - S - 20, odd);
      ExpectMatchesOracle(p, kF32);
    }
}

TEST(Masks, ThatHideEveryKeyByALowBiasHideNone) {
  Problem p;
  p.Fill();
  AddWindowMask(p, DType::kF32, 0, std::numeric_limits<float>::lowest());
  ExpectMatchesOracle(p, kF32);  // the mean of all values
  EXPECT_EQ(p.key_rows_read, p.Hkv * p.T);
}

TEST(Masks, OfLowBiasesOnlyAreNoWindow) {
  Problem p;
  p.Fill();
  AddWindowMask(p, DType::kF32, p.T, 0);
  for (int64_t j = 0; j < p.T; ++j) p.mask.Set(j, j % 2 == 0 ? -60000.0 : -59999.0);
  ExpectMatchesOracle(p, 1e-2);  // f32 knows such scores to 0.004
  EXPECT_EQ(p.key_rows_read, p.Hkv * p.T);
}

// A KV head's keys are read as far as the longest window of its query heads reaches.
TEST(Masks, OfEachHeadItsOwnHideKeysOfThatHeadOnly) {
  const std::vector<int64_t> windows = {3, 77, 5, 200, 1, 20, 33, 9};
  for (const DType type : {DType::kBool, DType::kF32, DType::kBF16})
    for (const int64_t S : {1, 2, 40}) {
      SCOPED_TRACE(std::string(NameOf(type)) + " S " + std::to_string(S));
      Problem p;
      p.B = 2;
      p.Hq = 8;
      p.Hkv = 2;
      p.S = S;
      p.T = 1001;
      p.D = 16;
      p.Fill();
      AddWindowMask(p, type, windows, -3.38e38);
      ExpectMatchesOracle(p, kF32);
      p.key_rows_read = 0;
      Poison(p, 0, p.T - S - 199);
      const Array out = Attended(p);
      for (int64_t i = 0; i < out.size(); ++i) ASSERT_FALSE(std::isnan(out.Get(i)));
      if (S == 1) {
        EXPECT_EQ(p.key_rows_read, p.B * (200 + 33));
      }
    }
}

TEST(Masks, OfEachHeadItsOwnAreReadWhereAHeadSeesNoKey) {
  Problem p;
  p.Hq = 8;
  p.Hkv = 2;
  p.T = 300;
  p.Fill();
  AddWindowMask(p, DType::kBool, {3, 0, 5, 40, 0, 0, 0, 0}, 0);
  ExpectMatchesOracle(p, kF32);
}

TEST(Masks, ABiasOfOneHeadIsNotLostAmongHeadsThatHaveNone) {
  for (const int64_t S : {1, 40}) {
    Problem p;
    p.Hq = 8;
    p.Hkv = 2;
    p.S = S;
    p.T = 300;
    p.D = 16;
    p.Fill();
    AddWindowMask(p, DType::kF32, std::vector<int64_t>(8, 77), std::numeric_limits<float>::lowest());
    p.mask.Set((6 * S + S / 2) * p.T + p.T - S - 20, 1.5);
    ExpectMatchesOracle(p, kF32);
  }
}

TEST(Rows, ThatSeeNoKeyGiveZeros) {
  Problem p;
  p.S = 2;
  p.T = 8;
  p.query_position = {-1};  // row 0 stands before key 0
  p.Fill();
  const Array out = Attended(p);
  for (int64_t i = 0; i < p.Hq * p.D; ++i) EXPECT_EQ(out.Get(i), 0);
  ExpectMatchesOracle(p, kF32);
}

TEST(Rows, WhoseBiasIsAllMinusInfinityGiveZeros) {
  Problem p;
  p.Fill();
  p.AddBias(DType::kF32, false);
  for (int64_t j = 0; j < p.T; ++j) p.mask.Set(j, -std::numeric_limits<double>::infinity());
  const Array out = Attended(p);
  for (int64_t i = 0; i < out.size(); ++i) EXPECT_EQ(out.Get(i), 0);
}

TEST(Rows, ANanInAVisibleKeyIsNotHidden) {
  Problem p;
  p.Fill();
  Poison(p, 3, 4);
  const Array out = Attended(p);
  EXPECT_TRUE(std::isnan(out.Get(0)));
}

TEST(Scores, AfterTheMaskOrTheSoftmaxNoInvisibleKeyIsRead) {
  for (const ScoreStage stage : {ScoreStage::kMasked, ScoreStage::kWeights}) {
    Problem p;
    p.S = 3;
    p.T = 200;
    p.window = 20;
    p.length = {120};
    p.show_scores = true;
    p.stage = stage;
    p.Fill();
    Poison(p, 0, 97);
    Poison(p, 120, 200);
    ExpectMatchesOracle(p, kF32);
  }
}

}  // namespace
}  // namespace kvshare
