// Scratch memory of the kernels.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace kvshare {

// Scratch memory that grows to what the largest calls need and is then reused: no allocation a call afterwards. Safe
// under concurrent calls; any number of kernels may share one pool. It keeps at most kMostKept bytes between calls:
// what does not fit is given back to the system when its lease ends.
class WorkspacePool {
 public:
  static constexpr size_t kMostKept = size_t{48} << 20;

  WorkspacePool() = default;
  ~WorkspacePool();
  WorkspacePool(const WorkspacePool&) = delete;
  WorkspacePool& operator=(const WorkspacePool&) = delete;

  // A block of at least `bytes`, 64-byte aligned, contents unspecified; returned to the pool on destruction, which
  // neither allocates nor throws. Throws std::bad_alloc.
  class Lease {
   public:
    Lease(WorkspacePool& pool, size_t bytes);
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    void* data() const;

   private:
    WorkspacePool& pool_;
    struct Block* block_;
  };

  // Gives all that no lease holds back to the system.
  void Trim();

  // Bytes that no lease holds.
  size_t kept_bytes() const;
  // Blocks ever allocated or regrown: constant once warm.
  int64_t allocations() const { return allocations_.load(std::memory_order_relaxed); }

 private:
  struct Block* Take(size_t bytes);
  void Return(struct Block* block);

  mutable std::mutex mutex_;
  struct Block* free_ = nullptr;  // linked by size, the smallest first
  size_t kept_bytes_ = 0;
  std::atomic<int64_t> allocations_{0};
};

}  // namespace kvshare
