// Attention and cache appends on a CUDA device: what call.h says, computed where the tensors lie. Nothing here looks at
// device memory, allocates it or waits for a stream, so every call can be captured in a CUDA graph.
//
//   KVSHARE_RETURN_IF_ERROR(CheckAttention(call, where));
//   KVSHARE_ASSIGN_OR_RETURN(const AttendPlan plan, PlanAttend(call, positions, CurrentDevice(), where));
//   AttendCuda(plan, stream, scratch of plan.scratch_bytes);
#pragma once

#include <cstddef>
#include <string_view>

#include "cuda/device_call.h"
#include "cuda/kernel_table.h"
#include "cuda/runtime.h"
#include "kvshare/call.h"
#include "kvshare/status.h"

namespace kvshare::cuda {

// The numbers of a call, which lie on the device. They stand in place of AttentionCall::positions, which is not read.
struct DevicePositions {
  DeviceNumbers length;                                 // valid keys of each sequence
  DeviceNumbers query_position;                         // may be negative: set `least`
  DeviceNumbers query_length;                           // rows that are tokens
  DeviceNumbers first_column = DeviceNumbers::Same(0);  // of mask and scores: the column of key 0
};

// The launches of one call. Depends on extents, types, strides, pointers' alignment and the device; never on values.
struct AttendPlan {
  DeviceAttention call;
  const AttendKernel* kernel = nullptr;
  int splits = 1;            // of each row tile's visible keys
  int row_tiles = 1;         // a KV head
  size_t scratch_bytes = 0;  // 256-byte aligned
};

// Needs CheckAttention(call).ok(). Fails (kRefused) for f64, which no CUDA kernel serves, and for head sizes whose rows
// do not fit into the device's shared memory; `where` opens the message.
Result<AttendPlan> PlanAttend(const AttentionCall& call, const DevicePositions& positions, const DeviceFacts& device,
                              std::string_view where);

// Enqueues on `stream` (a cudaStream_t). Fails (kInternal) where a launch does.
Status AttendCuda(const AttendPlan& plan, void* stream, void* scratch);

// The numbers of an append, which lie on the device. They stand in place of AppendCall's own, which are not read.
struct AppendPositions {
  DeviceNumbers past_length = DeviceNumbers::Same(0);
  DeviceNumbers length;
  DeviceNumbers skip = DeviceNumbers::Same(0);
  DeviceNumbers rotary_start = DeviceNumbers::Same(0);  // position of new row 0 in the sequence: past_length, usually
};

// Needs CheckAppend(call).ok(). Enqueues one append; no scratch. Fails (kRefused) for f64, (kInternal) where a launch
// does.
Status AppendCuda(const AppendCall& call, const AppendPositions& positions, const DeviceFacts& device, void* stream,
                  std::string_view where);

}  // namespace kvshare::cuda
