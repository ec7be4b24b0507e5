#include "attention/simd_target.h"

#include <fmt/format.h>
#include <hwy/targets.h>

#include <cstdlib>
#include <string>
#include <string_view>

namespace kvshare {
namespace {

Status Limit() {
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
