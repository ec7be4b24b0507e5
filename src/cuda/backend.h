// CUDA kernels as a row of the backend table.
#pragma once

#include "backend/backend.h"

namespace kvshare::cuda {

// The backend for nodes of ONNX Runtime's provider `provider`. Null: for nodes of the CPU's provider, in the emulator,
// whose device memory is the host's. Both strings are of static storage.
Backend CudaBackend(const char* name, const char* provider);

}  // namespace kvshare::cuda
