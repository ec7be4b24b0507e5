#include <algorithm>
#include <cstdlib>
#include <new>

#include "kvshare/attend.h"

namespace kvshare {

struct Block {
  void* data = nullptr;
  size_t bytes = 0;

  ~Block() { std::free(data); }
  void Grow(size_t wanted) {
    std::free(data);
    bytes = (wanted + 4095) / 4096 * 4096;
    data = std::aligned_alloc(64, bytes);
    if (data == nullptr) throw std::bad_alloc();
  }
};

WorkspacePool::WorkspacePool() { free_.reserve(64); }
WorkspacePool::~WorkspacePool() = default;

// The smallest free block that fits; else the largest one is regrown, else there is a new one.
WorkspacePool::Lease::Lease(WorkspacePool& pool, size_t bytes) : pool_(pool), block_(nullptr) {
  std::unique_ptr<Block> block;
  {
    const std::lock_guard lock(pool.mutex_);
    auto& free = pool.free_;  // sorted by size
    if (!free.empty()) {
      auto it = std::find_if(free.begin(), free.end(), [&](const auto& b) { return b->bytes >= bytes; });
      if (it == free.end()) --it;
      block = std::move(*it);
      free.erase(it);
    }
  }
  if (!block) block = std::make_unique<Block>();
  if (block->bytes < bytes || block->data == nullptr) {
    block->Grow(bytes);
    pool.allocations_.fetch_add(1, std::memory_order_relaxed);
  }
  block_ = block.release();
}

WorkspacePool::Lease::~Lease() {
  std::unique_ptr<Block> block(block_);
  const std::lock_guard lock(pool_.mutex_);
  auto& free = pool_.free_;
  const auto it = std::find_if(free.begin(), free.end(), [&](const auto& b) { return b->bytes >= block->bytes; });
  free.insert(it, std::move(block));
}

void* WorkspacePool::Lease::data() const { return block_->data; }

}  // namespace kvshare
