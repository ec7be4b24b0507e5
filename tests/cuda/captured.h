// A call of the backend, captured in a graph.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <vector>

#include "cuda/backend.h"
#include "cuda/runtime.h"
#include "tests/cuda/device_problem.h"

namespace kvshare::cuda::testing {

// As a provider's arena: what the runs before a capture took, the captured run gets again.
class Arena : public CallMemory {
 public:
  ~Arena() override {
    for (const Block& block : blocks_) EXPECT_TRUE(Free(block.data).ok());
  }
  Result<void*> Take(size_t bytes) override {
    if (taken_ == blocks_.size()) {
      KVSHARE_ASSIGN_OR_RETURN(void* const block, Allocate(bytes));
      blocks_.push_back({block, bytes});
    }
    EXPECT_EQ(blocks_[taken_].bytes, bytes);
    return blocks_[taken_++].data;
  }
  void GiveBack() { taken_ = 0; }
  // Nothing of the last run is left.
  void Spoil() {
    for (const Block& block : blocks_)
      EXPECT_TRUE(Upload(block.data, std::vector<char>(block.bytes, -1).data(), block.bytes).ok());
  }

 private:
  struct Block {
    void* data;
    size_t bytes;
  };
  std::vector<Block> blocks_;
  size_t taken_ = 0;
};

inline const Backend& TheBackend() {
  static const Backend backend = CudaBackend("cuda", /*provider=*/nullptr);
  return backend;
}

// Work that ran once, and then was captured.
class Captured {
 public:
  using Work = std::function<Status(Exec&)>;

  explicit Captured(const Work& work) : stream_(Must(CreateStream())) {
    Expect(work(exec_));
    Expect(Synchronize(stream_));
    arena_.GiveBack();
    Expect(BeginCapture(stream_));
    Expect(work(exec_));
    graph_ = Must(EndCapture(stream_));
  }
  ~Captured() { Expect(DestroyStream(stream_)); }
  Captured(const Captured&) = delete;
  Captured& operator=(const Captured&) = delete;

  void Replay() {
    arena_.Spoil();
    Expect(graph_->Replay(stream_));
    Expect(Synchronize(stream_));
  }
  const char* kernel() const { return exec_.kernel; }

 private:
  static void Expect(const Status& status) { EXPECT_TRUE(status.ok()) << status.message(); }

  void* const stream_;
  Arena arena_;
  WorkspacePool pool_;
  Exec exec_{ParallelFor::Serial(), pool_, arena_, "test", stream_};
  std::unique_ptr<Graph> graph_;
};

}  // namespace kvshare::cuda::testing
