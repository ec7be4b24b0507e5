#include "ort/scratch.h"

#include <atomic>
#include <cstdint>

namespace kvshare::ort {
namespace {

std::atomic<int64_t> holders = 0;

}  // namespace

// Never destroyed: sessions may end while the process exits.
WorkspacePool& Scratch::Pool() {
  static auto& pool = *new WorkspacePool();
  return pool;
}

Result<void*> HostMemory::Take(size_t bytes) { return leases_.at(taken_++).emplace(Scratch::Pool(), bytes).data(); }

Scratch::Scratch() { holders.fetch_add(1, std::memory_order_relaxed); }

Scratch::~Scratch() {
  if (holders.fetch_sub(1, std::memory_order_acq_rel) == 1) Pool().Trim();
}

}  // namespace kvshare::ort
