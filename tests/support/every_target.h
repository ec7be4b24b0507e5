// TEST_P(EveryTarget, ...) runs on every SIMD target that the kernels are built for and this CPU has, each forced in
// turn.
#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <string>
#include <vector>

#include "attention/simd_target.h"

namespace kvshare::testing {

inline std::vector<int64_t> TargetsIn(int64_t bits) {
  std::vector<int64_t> targets;
  for (; bits != 0; bits &= bits - 1) targets.push_back(bits & -bits);
  return targets;
}

// Of this CPU; asked before a target is forced.
inline int64_t TargetBitsHere() {
  static const int64_t bits = [] {
    EXPECT_TRUE(LimitSimdTarget().ok());
    return hwy::SupportedTargets() & HWY_TARGETS;
  }();
  return bits;
}
inline std::vector<int64_t> TargetsHere() { return TargetsIn(TargetBitsHere()); }

class EveryTarget : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override {
    if ((TargetBitsHere() & GetParam()) == 0) GTEST_SKIP() << "this CPU does not have " << hwy::TargetName(GetParam());
    hwy::SetSupportedTargetsForTest(GetParam());
  }
  void TearDown() override { hwy::SetSupportedTargetsForTest(TargetBitsHere()); }
};

inline std::string NameOfTarget(const ::testing::TestParamInfo<int64_t>& target) {
  return hwy::TargetName(target.param);
}

}  // namespace kvshare::testing

// Once a test file.
#define KVSHARE_ON_EVERY_TARGET()                                                                     \
  INSTANTIATE_TEST_SUITE_P(Simd, EveryTarget, ::testing::ValuesIn(::kvshare::testing::TargetsHere()), \
                           ::kvshare::testing::NameOfTarget)
