// The SIMD kernels: attention and cache appends in f32, rounded once at the store. call.h says what a call is.
#pragma once

#include <cstdint>

#include "kvshare/call.h"
#include "kvshare/status.h"
#include "kvshare/workspace_pool.h"

namespace kvshare {

// Runs body(arg, i) for i in [0, n), possibly at the same time on several threads; returns when all are done. The split
// of work never depends on the number of threads, so neither do the results' bits.
struct ParallelFor {
  void* context = nullptr;
  void (*run)(void* context, int64_t n, void (*body)(void* arg, int64_t i), void* arg) = nullptr;

  // One after the other on the calling thread.
  static ParallelFor Serial();
};

// Attention; needs CheckAttention(call).ok(). K and V are read once per key-value head for all the query heads of its
// group; only tiles that some row sees are touched; sums in f32, rounded once at the store. Fails (kRefused) for f64,
// which only AttendOracle serves, where KVSHARE_FORCE_KERNEL names a kernel that does not exist or cannot serve the
// call, or KVSHARE_SIMD_TARGET a target that is not here; and where there is no memory for scratch (kInternal).
Status Attend(const AttentionCall& call, const ParallelFor& parallel, WorkspacePool& pool);

// Normalizes, rotates, quantizes and appends; needs CheckAppend(call).ok(). Fails (kRefused) for f64, which only
// AppendOracle serves, and where there is no memory for scratch (kInternal).
Status Append(const AppendCall& call, const ParallelFor& parallel, WorkspacePool& pool);

// The SIMD target that Attend runs on here, e.g. "AVX3_ZEN4".
const char* SimdTarget();

}  // namespace kvshare
