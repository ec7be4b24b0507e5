// Who computes calls: a table of functions for each kind of processor. The adapters of src/ort and src/ep ask the table
// that their library holds, and name no processor themselves.
#pragma once

#include <cstddef>
#include <string_view>

#include "core/ops.h"
#include "kvshare/attend.h"
#include "kvshare/call.h"
#include "kvshare/lengths.h"
#include "kvshare/status.h"
#include "kvshare/workspace_pool.h"

namespace kvshare {

// Memory where a backend computes, for the length of one call.
class CallMemory {
 public:
  virtual ~CallMemory() = default;
  // At least `bytes`, 64-byte aligned, contents unspecified; given back when the call ends. kInternal, or
  // std::bad_alloc, where there is none.
  virtual Result<void*> Take(size_t bytes) = 0;
};

// Threads and memory that a call uses.
struct Exec {
  ParallelFor parallel;          // the host's threads
  WorkspacePool& pool;           // scratch of host kernels
  CallMemory& memory;            // caches and masks that the adapter makes on the way
  std::string_view where;        // opens the message of a refusal: "<op> '<node>'"
  void* stream = nullptr;        // a device's work is queued there, in order
  const char* kernel = nullptr;  // set to what computed the call; static storage
};

struct Backend {
  const char* name;
  // ONNX Runtime's execution provider; null: the CPU's.
  const char* provider;
  // Where tensors and the numbers in them lie, and CallMemory. kDevice: the host reads none of them, and the backend
  // clamps lengths and positions to what the call's extents allow.
  Memory memory;
  // Once a kernel is created, never during a call.
  Status (*prepare)();
  // Both need a call that CheckAttention or CheckAppend takes. kRefused where no kernel serves it; it then has written
  // nothing, and nobody else computes it.
  Status (*append)(const AppendCall& call, Exec& exec);
  Status (*attend)(const AttentionCall& call, Exec& exec);
  // Zeros.
  Status (*clear)(void* data, size_t bytes, Exec& exec);

  // Where the tensor of a slot lies.
  Memory MemoryOf(const Slot& slot) const { return slot.on_host ? Memory::kHost : memory; }
};

// SIMD kernels, and the oracle for f64.
const Backend& CpuBackend();

}  // namespace kvshare
