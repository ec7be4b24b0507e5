// The device as the planner sees it. Two implementations: runtime_cuda.cc over the CUDA runtime, and
// emulation/runtime.cc, which is no device at all.
#pragma once

#include <cstddef>

#include "kvshare/status.h"

namespace kvshare::cuda {

struct DeviceFacts {
  int multiprocessors = 0;
  size_t shared_bytes = 0;  // the most that one block may ask for
};

// Facts of the calling thread's current device. Fails (kInternal) where there is none.
Result<DeviceFacts> CurrentDevice();

// Lets every kernel ask for its shared memory; once a device, never while a stream is captured.
Status PrepareKernels();

}  // namespace kvshare::cuda
