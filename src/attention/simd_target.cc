#include "attention/simd_target.h"

#include <fmt/format.h>
#include <hwy/targets.h>

#if HWY_ARCH_X86
#include <cpuid.h>
#endif

#include <cstdlib>
#include <string>
#include <string_view>

namespace kvshare {
namespace {

// Highway keeps AVX3_ZEN4 to AMD, but Intel's CPUs since Sapphire Rapids have its instructions.
// The bits of CPUID's leaf 7: __builtin_cpu_supports does not know them all in every compiler. That the system keeps
// the registers is part of Highway's AVX3.
bool RunsZen4Code() {
#if HWY_ARCH_X86
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kWanted =
      bit_AVX512VBMI2 | bit_GFNI | bit_VAES | bit_VPCLMULQDQ | bit_AVX512VNNI | bit_AVX512BITALG | bit_AVX512VPOPCNTDQ;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (ecx & kWanted) != kWanted) return false;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & bit_AVX512BF16) != 0;
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
