#include <cstdlib>
#include <memory>
#include <new>

#include "kvshare/workspace_pool.h"

namespace kvshare {

struct Block {
  void* data = nullptr;
  size_t bytes = 0;
  Block* next = nullptr;

  Block() = default;
  ~Block() { std::free(data); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void Grow(size_t wanted) {
    std::free(data);
    bytes = (wanted + 4095) / 4096 * 4096;
    data = std::aligned_alloc(64, bytes);
    if (data == nullptr) throw std::bad_alloc();
  }
};

WorkspacePool::~WorkspacePool() { Trim(); }

void WorkspacePool::Trim() {
  Block* block = nullptr;
  {
    const std::lock_guard lock(mutex_);
    block = free_;
    free_ = nullptr;
    kept_bytes_ = 0;
  }
  while (block != nullptr) {
    const std::unique_ptr<Block> freed(block);
    block = block->next;
  }
}

size_t WorkspacePool::kept_bytes() const {
  const std::lock_guard lock(mutex_);
  return kept_bytes_;
}

// The smallest free block that fits, else the largest one; null where none is free.
Block* WorkspacePool::Take(size_t bytes) {
  const std::lock_guard lock(mutex_);
  if (free_ == nullptr) return nullptr;
  Block** at = &free_;
  while ((*at)->bytes < bytes && (*at)->next != nullptr) at = &(*at)->next;
  Block* const block = *at;
  *at = block->next;
  kept_bytes_ -= block->bytes;
  return block;
}

void WorkspacePool::Return(Block* block) {
  std::unique_ptr<Block> surplus(block);
  const std::lock_guard lock(mutex_);
  if (kept_bytes_ + block->bytes > kMostKept) return;  // freed after the lock
  Block** at = &free_;
  while (*at != nullptr && (*at)->bytes < block->bytes) at = &(*at)->next;
  block->next = *at;
  *at = surplus.release();
  kept_bytes_ += block->bytes;
}

WorkspacePool::Lease::Lease(WorkspacePool& pool, size_t bytes) : pool_(pool), block_(nullptr) {
  std::unique_ptr<Block> block(pool.Take(bytes));
  if (!block) block = std::make_unique<Block>();
  if (block->bytes < bytes || block->data == nullptr) {
    block->Grow(bytes);
    pool.allocations_.fetch_add(1, std::memory_order_relaxed);
  }
  block_ = block.release();
}

WorkspacePool::Lease::~Lease() { pool_.Return(block_); }

void* WorkspacePool::Lease::data() const { return block_->data; }

}  // namespace kvshare
