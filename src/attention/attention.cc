#include "kvshare/attention.h"
namespace kvshare {
// Bring-up only: replaced by the SIMD kernels in the next commit.
struct Block {};
WorkspacePool::WorkspacePool() = default;
WorkspacePool::~WorkspacePool() = default;
void Attend(const AttentionCall& call, const ParallelFor&, WorkspacePool&) { AttendOracle(call); }
void Append(const AppendCall& call, const ParallelFor&) { AppendOracle(call); }
Status CheckAttention(const AttentionCall&, std::string_view) { return {}; }
Status CheckAppend(const AppendCall&, std::string_view) { return {}; }
const char* SimdTarget() { return "oracle"; }
ParallelFor ParallelFor::Serial() {
  return {nullptr, [](void*, int64_t n, void (*body)(void*, int64_t), void* arg) {
            for (int64_t i = 0; i < n; ++i) body(arg, i);
          }};
}
}  // namespace kvshare
