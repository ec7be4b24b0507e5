#include "kvshare/attention.h"
namespace kvshare {
// Bring-up only: replaced by the SIMD kernels in the next commit.
struct Block {};
WorkspacePool::WorkspacePool() = default;
WorkspacePool::~WorkspacePool() = default;
Status Attend(const AttentionCall& call, const ParallelFor&, WorkspacePool&) {
  AttendOracle(call);
  return {};
}
void Append(const AppendCall& call, const ParallelFor&) { AppendOracle(call); }
const char* SimdTarget() { return "oracle"; }
ParallelFor ParallelFor::Serial() {
  return {nullptr, [](void*, int64_t n, void (*body)(void*, int64_t), void* arg) {
            for (int64_t i = 0; i < n; ++i) body(arg, i);
          }};
}
}  // namespace kvshare
