// Every way in which narrow kernels read K and V, whatever CPU the tests run on.
#include <random>

#include "attention/tuning.h"
#include "kvshare/attend.h"
#include "kvshare/oracle.h"
#include "tests/support/every_target.h"
#include "tests/support/problem.h"

namespace kvshare {
namespace {

using testing::Combinations;
using testing::EveryTarget;
using testing::ExpectMatchesOracle;
using testing::Problem;

class EveryReading : public EveryTarget {
 protected:
  void SetUp() override {
    EveryTarget::SetUp();
    cpu_ = ThisCpu();
  }
  void TearDown() override {
    SetCpuForTest(cpu_);
    EveryTarget::TearDown();
  }

 private:
  Cpu cpu_;
};

INSTANTIATE_TEST_SUITE_P(Simd, EveryReading, ::testing::ValuesIn(testing::TargetsHere()), testing::NameOfTarget);

double ToleranceOf(DType type) { return type == DType::kF32 ? 2e-6 : type == DType::kF16 ? 1e-3 : 8e-3; }

// Those for which a target of this architecture may choose another reading.
#if HWY_ARCH_X86
constexpr Cpu kCpus[] = {Cpu::kCommon, Cpu::kZen4, Cpu::kZen5};
#else
constexpr Cpu kCpus[] = {Cpu::kCommon};
#endif

TEST_P(EveryReading, MatchesTheOracleForAnyHeadSizeGroupAndLayout) {
  Combinations combinations;
  uint32_t seed = 1;
  for (const Cpu cpu : kCpus)
    for (const DType type : {DType::kF32, DType::kF16, DType::kBF16})
      for (const int64_t D : {20, 90, 128, 300})
        for (const int64_t group : {1, 2, 4, 8})
          for (const bool bsnh : {false, true}) {
            if (!combinations.Take()) continue;
            SetCpuForTest(cpu);
            Problem p;
            p.Hkv = 2;
            p.Hq = 2 * group;
            p.D = D;
            p.T = 150;
            p.type = p.kv_type = type;
            p.bsnh = bsnh;
            p.window = seed % 3 == 0 ? 37 : 0;
            p.length = {static_cast<int64_t>(150 - seed % 5)};
            p.seed = seed++;
            p.Fill();
            SCOPED_TRACE(::testing::Message() << "cpu " << static_cast<int>(cpu) << " " << NameOf(type) << " D " << D
                                              << " group " << group << " bsnh " << bsnh);
            ExpectMatchesOracle(p, ToleranceOf(type));
            if (HasFatalFailure()) return;
          }
}

// More keys than a tile and than a split; a maximum that moves late rescales what has been summed.
TEST_P(EveryReading, MatchesTheOracleOverManyTilesAndSplits) {
  for (const Cpu cpu : kCpus)
    for (const DType type : {DType::kF32, DType::kF16, DType::kBF16})
      for (const int64_t Hkv : {1, 32}) {  // 32: no splits, so tiles follow each other
        SetCpuForTest(cpu);
        Problem p;
        p.Hkv = Hkv;
        p.Hq = Hkv;
        p.D = 128;
        p.T = 700;
        p.scale = 1.0F;
        p.type = p.kv_type = type;
        p.Fill();
        SCOPED_TRACE(::testing::Message() << "cpu " << static_cast<int>(cpu) << " " << NameOf(type) << " " << Hkv);
        ExpectMatchesOracle(p, 4 * ToleranceOf(type));
        if (HasFatalFailure()) return;
      }
}

// More K and V than a cache is taken to keep, which may be read in another way.
TEST_P(EveryReading, MatchesTheOracleOverMoreThanACacheKeeps) {
  Combinations combinations;
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16})
    for (const int64_t D : {90, 256})
      for (const int64_t group : {1, 2, 4, 8}) {
        if (!combinations.Take()) continue;
        SetCpuForTest(Cpu::kCommon);
        Problem p;
        p.Hq = group;
        p.D = D;
        p.T = (kKeptBytes + (100 << 10)) / (2 * BytesOf(type, D));
        p.type = p.kv_type = type;
        p.Fill();
        SCOPED_TRACE(::testing::Message() << NameOf(type) << " D " << D << " group " << group);
        ExpectMatchesOracle(p, 4 * ToleranceOf(type));
        if (HasFatalFailure()) return;
      }
}

// K and V of two types may be read in two ways.
TEST_P(EveryReading, MatchesTheOracleWhereKAndVDiffer) {
  for (const Cpu cpu : kCpus)
    for (const int64_t Dv : {64, 256}) {
      SetCpuForTest(cpu);
      Problem p;
      p.D = 128;
      p.Dv = Dv;
      p.T = 200;
      p.Fill();
      ExpectMatchesOracle(p, ToleranceOf(p.type));
      if (HasFatalFailure()) return;
    }
}

}  // namespace
}  // namespace kvshare
