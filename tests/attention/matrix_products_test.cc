// Products of matrices (Intel's AMX) and of vectors: the same integers, so the same bits.
#include <gtest/gtest.h>

#include "attention/tuning.h"
#include "tests/support/problem.h"

namespace kvshare {
namespace {

using testing::Array;
using testing::Attended;
using testing::Problem;

class MatrixProducts : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasMatrixProducts()) GTEST_SKIP() << "this CPU does not multiply matrices, or the system does not let it";
  }
  void TearDown() override { UseMatrixProductsForTest(true); }

  void ExpectTheBitsOfVectors(Problem& p) {
    UseMatrixProductsForTest(true);
    const Array matrices = Attended(p);
    UseMatrixProductsForTest(false);
    EXPECT_EQ(matrices.bytes, Attended(p).bytes)
        << NameOf(p.kv_type) << " D " << p.D << " Dv " << p.Dv << " group " << p.Hq / p.Hkv << " S " << p.S << " T "
        << p.T << " window " << p.window << " bsnh " << p.bsnh << " per channel " << p.per_channel;
  }
};

// Keys that fill no matrix, one, several and parts; a stretch of weights and more.
TEST_F(MatrixProducts, GiveTheBitsOfVectorsForAnyNumberOfKeys) {
  uint32_t seed = 1;
  for (const DType type : {DType::kI8, DType::kI4})
    for (const int64_t T : {1, 3, 15, 16, 17, 33, 64, 65, 100, 127, 128, 129, 300, 700})
      for (const int64_t group : {3, 4, 8}) {
        Problem p;
        p.Hkv = 2;
        p.Hq = 2 * group;
        p.D = 128;
        p.T = T;
        p.kv_type = type;
        p.bsnh = seed % 2 == 0;
        p.per_channel = seed % 3 == 0;
        p.window = seed % 5 == 0 ? 50 : 0;
        p.seed = seed++;
        p.Fill();
        ExpectTheBitsOfVectors(p);
      }
}

// Channels that do not fill a vector are left to vectors in scores, and padded in weights.
TEST_F(MatrixProducts, GiveTheBitsOfVectorsForAnyHeadSizeAndNumberOfRows) {
  uint32_t seed = 1;
  for (const DType type : {DType::kI8, DType::kI4})
    for (const int64_t D : {20, 64, 80, 96, 192, 256, 512, 1024})
      for (const int64_t Dv : {64, 90, 256})
        for (const int64_t S : {1, 3}) {
          Problem p;
          p.Hq = 4 + 4 * (seed % 4);
          p.S = S;
          p.D = D;
          p.Dv = Dv;
          p.T = 90;
          p.kv_type = type;
          p.seed = seed++;
          p.Fill();
          ExpectTheBitsOfVectors(p);
        }
}

// A key that takes nearly all of the weight, and has no value: f32 takes over where digits would lose the rest.
TEST_F(MatrixProducts, GiveTheBitsOfVectorsBesideASink) {
  Problem p;
  p.D = 128;
  p.T = 400;
  p.scale = 1.0F;
  p.kv_type = DType::kI8;
  p.Fill();
  for (int64_t d = 0; d < p.D; ++d) p.value.Set(d, 0);
  ExpectTheBitsOfVectors(p);
}

}  // namespace
}  // namespace kvshare
