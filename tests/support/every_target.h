// TEST_P(EveryTarget, ...) runs on every SIMD target that the kernels are built for and this CPU has, each forced in
// turn.
#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <string>
#include <vector>

#include "attention/simd_target.h"

namespace kvshare::testing {

class EveryTarget : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

// The first caller decides, before a target is forced.
inline const std::vector<int64_t>& TargetsHere() {
  static const std::vector<int64_t> here = [] {
    EXPECT_TRUE(LimitSimdTarget().ok());
    std::vector<int64_t> targets;
    for (int64_t left = hwy::SupportedTargets() & HWY_TARGETS; left != 0; left &= left - 1)
      targets.push_back(left & -left);
    return targets;
  }();
  return here;
}

inline std::string NameOfTarget(const ::testing::TestParamInfo<int64_t>& target) {
  return hwy::TargetName(target.param);
}

}  // namespace kvshare::testing

// Once a test file.
#define KVSHARE_ON_EVERY_TARGET()                                                                     \
  INSTANTIATE_TEST_SUITE_P(Simd, EveryTarget, ::testing::ValuesIn(::kvshare::testing::TargetsHere()), \
                           ::kvshare::testing::NameOfTarget)
