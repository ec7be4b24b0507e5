// Which keys a call reads, and what rows give that see none.
#include <limits>

#include "kvshare/attention.h"
#include "tests/support/problem.h"

namespace kvshare {
namespace {

using testing::Array;
using testing::Attended;
using testing::ExpectMatchesOracle;
using testing::Problem;

constexpr double kF32 = 2e-6;  // relative to the largest output

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
