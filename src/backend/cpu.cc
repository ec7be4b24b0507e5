#include <cstring>

#include "backend/backend.h"
#include "kvshare/oracle.h"

namespace kvshare {
namespace {

// Only the oracle computes in double.
bool IsOracles(DType type, Exec& exec) {
  exec.kernel = type == DType::kF64 ? "oracle" : SimdTarget();
  return type == DType::kF64;
}

Status AppendOnCpu(const AppendCall& call, Exec& exec) {
  if (!IsOracles(call.present.type, exec)) return Append(call, exec.parallel, exec.pool);
  AppendOracle(call);
  return {};
}

Status AttendOnCpu(const AttentionCall& call, Exec& exec) {
  if (!IsOracles(call.query.type, exec)) return Attend(call, exec.parallel, exec.pool);
  AttendOracle(call);
  return {};
}

Status PrepareCpu() { return {}; }

Status ClearOnCpu(void* data, size_t bytes, Exec& /*exec*/) {
  std::memset(data, 0, bytes);
  return {};
}

}  // namespace

const Backend& CpuBackend() {
  static constexpr Backend kCpu = {"cpu", nullptr, Memory::kHost, PrepareCpu, AppendOnCpu, AttendOnCpu, ClearOnCpu};
  return kCpu;
}

}  // namespace kvshare
