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
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

// Highway keeps AVX3_ZEN4 to AMD. Intel's CPUs with its instructions run that code too.
inline int64_t Zen4OnIntel() {
#if HWY_ARCH_X86
  const bool has = __builtin_cpu_supports("avx512bf16") != 0 && __builtin_cpu_supports("avx512vnni") != 0 &&
                   __builtin_cpu_supports("avx512vbmi2") != 0 && __builtin_cpu_supports("avx512bitalg") != 0 &&
                   __builtin_cpu_supports("avx512vpopcntdq") != 0 && __builtin_cpu_supports("gfni") != 0 &&
                   __builtin_cpu_supports("vpclmulqdq") != 0 && __builtin_cpu_supports("vaes") != 0;
  return has && (hwy::SupportedTargets() & HWY_AVX3) != 0 ? HWY_AVX3_ZEN4 : 0;
#else
  return 0;
#endif
}

inline std::vector<int64_t> TargetsHere() {
  std::vector<int64_t> here;
  const int64_t targets = (hwy::SupportedTargets() | Zen4OnIntel()) & HWY_TARGETS;
  for (int64_t left = targets; left != 0; left &= left - 1) here.push_back(left & -left);
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
