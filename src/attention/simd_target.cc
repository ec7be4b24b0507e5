#include "attention/simd_target.h"

#include <fmt/format.h>
#include <hwy/targets.h>

#include <cstdlib>
#include <string>
#include <string_view>

namespace kvshare {
namespace {

// Highway keeps AVX3_ZEN4 to AMD, but Intel's CPUs since Sapphire Rapids have its instructions.
bool RunsZen4Code() {
#if HWY_ARCH_X86
  return __builtin_cpu_supports("avx512vnni") != 0 && __builtin_cpu_supports("avx512bf16") != 0 &&
         __builtin_cpu_supports("avx512vbmi2") != 0 && __builtin_cpu_supports("avx512bitalg") != 0 &&
         __builtin_cpu_supports("avx512vpopcntdq") != 0 && __builtin_cpu_supports("gfni") != 0 &&
         __builtin_cpu_supports("vpclmulqdq") != 0 && __builtin_cpu_supports("vaes") != 0;
#else
  return false;
#endif
}

Status Limit() {
  const int64_t targets = hwy::SupportedTargets();
  if ((targets & HWY_AVX3) != 0 && (targets & HWY_AVX3_ZEN4) == 0 && RunsZen4Code())
    hwy::SetSupportedTargetsForTest(targets | HWY_AVX3_ZEN4);
  const char* wanted = std::getenv("KVSHARE_SIMD_TARGET");
  if (wanted == nullptr || *wanted == '\0') return {};
  std::string have;
  for (int64_t left = hwy::SupportedTargets() & HWY_TARGETS; left != 0; left &= left - 1) {
    const int64_t target = left & -left;  // the best first: lower bits are better targets
    if (std::string_view(wanted) == hwy::TargetName(target)) {
      hwy::DisableTargets(target - 1);
      return {};
    }
    have += (have.empty() ? "" : ", ") + std::string(hwy::TargetName(target));
  }
  return Status::Refused(fmt::format("KVSHARE_SIMD_TARGET is '{}'; have {}", wanted, have));
}

}  // namespace

Status LimitSimdTarget() {
  static const Status status = Limit();
  return status;
}

}  // namespace kvshare
