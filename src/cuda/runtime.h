// The device as the planner and the tests see it. Two implementations: runtime_cuda.cc over the CUDA runtime, and
// emulation/runtime.cc, whose device is the host.
#pragma once

#include <cstddef>
#include <memory>

#include "kvshare/status.h"

namespace kvshare::cuda {

struct DeviceFacts {
  int multiprocessors = 0;
  size_t shared_bytes = 0;  // the most that one block may ask for
};

// Facts of the calling thread's current device. Fails (kInternal) where there is none.
Result<DeviceFacts> CurrentDevice();

// Lets every kernel ask for its shared memory; once a device before the first launch, never while a stream is captured.
Status PrepareKernels();

// For tests and benchmarks; AttendCuda and AppendCuda use none of what follows.

// Device memory. While a stream is captured, all of these fail, as CUDA's do.
Result<void*> Allocate(size_t bytes);
Status Free(void* device);
Status Upload(void* device, const void* host, size_t bytes);
Status Download(void* host, const void* device, size_t bytes);
Status CopyOnDevice(void* to, const void* from, size_t bytes, void* stream);
Status Synchronize(void* stream);
Result<void*> CreateStream();
Status DestroyStream(void* stream);

// The launches of a captured stream.
class Graph {
 public:
  virtual ~Graph() = default;
  virtual Status Replay(void* stream) = 0;
};
Status BeginCapture(void* stream);
Result<std::unique_ptr<Graph>> EndCapture(void* stream);

}  // namespace kvshare::cuda
