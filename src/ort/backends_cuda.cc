#include "cuda/backend.h"
#include "ort/backends.h"

namespace kvshare::ort {

std::span<const Backend* const> Backends() {
  static const Backend cuda = cuda::CudaBackend("cuda", "CUDAExecutionProvider");
  static const Backend* const backends[] = {&CpuBackend(), &cuda};
  return backends;
}

}  // namespace kvshare::ort
