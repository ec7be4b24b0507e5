// The scratch memory of all kernels of the process.
#pragma once

#include <array>
#include <cstddef>
#include <optional>

#include "backend/backend.h"
#include "kvshare/workspace_pool.h"

namespace kvshare::ort {

// One pool for all kernels, since a session runs few of its nodes at a time; given back to the system when the last
// kernel is gone. Each kernel holds one of these.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  static WorkspacePool& Pool();
};

// A call's memory from that pool: where host kernels compute.
class HostMemory final : public CallMemory {
 public:
  Result<void*> Take(size_t bytes) override;

 private:
  // Keys, values and a mask, at most.
  std::array<std::optional<WorkspacePool::Lease>, 4> leases_;
  size_t taken_ = 0;
};

}  // namespace kvshare::ort
