// TEST_P(EveryTarget, ...) runs on every SIMD target that the kernels are built for and this CPU has, each forced in
// turn.
#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <string>
#include <vector>

namespace kvshare::testing {

class EveryTarget : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override {
    if ((hwy::SupportedTargets() & GetParam()) == 0)
      GTEST_SKIP() << "this CPU does not have " << hwy::TargetName(GetParam());
    hwy::SetSupportedTargetsForTest(GetParam());
  }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

inline std::vector<int64_t> TargetsIn(int64_t bits) {
  std::vector<int64_t> targets;
  for (; bits != 0; bits &= bits - 1) targets.push_back(bits & -bits);
  return targets;
}

inline std::vector<int64_t> TargetsHere() { return TargetsIn(hwy::SupportedTargets() & HWY_TARGETS); }

inline std::string NameOfTarget(const ::testing::TestParamInfo<int64_t>& target) {
  return hwy::TargetName(target.param);
}

}  // namespace kvshare::testing

// Once a test file.
#define KVSHARE_ON_EVERY_TARGET()                                                                     \
  INSTANTIATE_TEST_SUITE_P(Simd, EveryTarget, ::testing::ValuesIn(::kvshare::testing::TargetsHere()), \
                           ::kvshare::testing::NameOfTarget)
