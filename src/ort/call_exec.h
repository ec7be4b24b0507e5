// The resources of a call in ONNX Runtime: threads, stream, and memory where the backend computes.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

#include "backend/backend.h"
#include "ort/ort_context.h"
#include "ort/scratch.h"

namespace kvshare::ort {

// Memory of the provider that runs the node, bound to its stream: the provider gives it to nobody else before the work
// that is queued there is done.
class DeviceMemory final : public CallMemory {
 public:
  // `like`: a tensor of the call that lies there.
  DeviceMemory(const CallContext& context, const OrtValue* like) : context_(context), like_(like) {}
  ~DeviceMemory() override;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  Result<void*> Take(size_t bytes) override;

 private:
  const CallContext& context_;
  const OrtValue* like_;
  OrtAllocator* allocator_ = nullptr;
  // Memory that was taken: by a host backend, or for a device's places and scratch of every append and attention.
  std::array<void*, 16> blocks_ = {};
  size_t taken_ = 0;
};

// Outlives the call's work on the host; what is queued on a stream needs it no longer.
class CallExec {
 public:
  CallExec(CallContext& context, const Backend& backend, const Tensor& query, std::string_view where)
      : context_(context),
        backend_(backend),
        device_(context, query.value),
        exec_{context.Parallel(), Scratch::Pool(), MemoryFor(backend), where, /*stream=*/nullptr, backend.name} {}
  CallExec(const CallExec&) = delete;
  CallExec& operator=(const CallExec&) = delete;

  // Before anything is computed.
  Status Begin();

  Exec& operator*() { return exec_; }
  Exec* operator->() { return &exec_; }

 private:
  CallMemory& MemoryFor(const Backend& backend) {
    if (backend.memory == Memory::kHost) return host_;
    return device_;
  }

  const CallContext& context_;
  const Backend& backend_;
  HostMemory host_;
  DeviceMemory device_;
  Exec exec_;
};

}  // namespace kvshare::ort
