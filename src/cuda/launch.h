// Launch(kernel, grid, threads, shared_bytes, stream, arguments...) enqueues a kernel. Under nvcc that is a launch;
// else the emulator runs it at once, or keeps it while a graph is captured.
#pragma once

#include "cuda/gpu.h"
#include "kvshare/status.h"

#if !defined(__CUDACC__)
#include "cuda/emulation/runtime.h"
#endif

namespace kvshare::cuda {

struct LaunchShape {
  gpu::Dim grid;
  int threads = 0;
  size_t shared_bytes = 0;
};

#if defined(__CUDACC__)

template <typename... Parameters, typename... Arguments>
Status Launch(void (*kernel)(Parameters...), const LaunchShape& shape, void* stream, const Arguments&... arguments) {
  kernel<<<dim3(shape.grid.x, shape.grid.y, shape.grid.z), shape.threads, shape.shared_bytes,
           static_cast<cudaStream_t>(stream)>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return {};
  return Status::Internal(std::string("CUDA refuses a launch: ") + cudaGetErrorString(error));
}

template <typename... Parameters>
Status AllowShared(void (*kernel)(Parameters...), size_t bytes) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error == cudaSuccess) return {};
  return Status::Internal(std::string("CUDA refuses shared memory: ") + cudaGetErrorString(error));
}

#else

template <typename... Parameters, typename... Arguments>
Status Launch(void (*kernel)(Parameters...), const LaunchShape& shape, void* stream, const Arguments&... arguments) {
  return emulation::Enqueue(reinterpret_cast<const void*>(kernel), shape.grid, shape.threads, shape.shared_bytes,
                            stream, [kernel, arguments...] { kernel(arguments...); });
}

template <typename... Parameters>
Status AllowShared(void (*kernel)(Parameters...), size_t bytes) {
  return emulation::AllowShared(reinterpret_cast<const void*>(kernel), bytes);
}

#endif

}  // namespace kvshare::cuda
