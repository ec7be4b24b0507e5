#include <cuda_runtime.h>

#include <string>

#include "cuda/runtime.h"

namespace kvshare::cuda {
namespace {

Status StatusOf(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  return Status::Internal(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

class CudaGraph : public Graph {
 public:
  explicit CudaGraph(cudaGraphExec_t graph) : graph_(graph) {}
  ~CudaGraph() override { cudaGraphExecDestroy(graph_); }
  Status Replay(void* stream) override {
    return StatusOf(cudaGraphLaunch(graph_, static_cast<cudaStream_t>(stream)), "a graph does not start");
  }

 private:
  cudaGraphExec_t graph_;
};

}  // namespace

Result<DeviceFacts> CurrentDevice() {
  int device = 0;
  KVSHARE_RETURN_IF_ERROR(StatusOf(cudaGetDevice(&device), "there is no device"));
  int multiprocessors = 0;
  int shared_bytes = 0;
  KVSHARE_RETURN_IF_ERROR(StatusOf(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
                                   "multiprocessors unknown"));
  KVSHARE_RETURN_IF_ERROR(StatusOf(
      cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory unknown"));
  return DeviceFacts{multiprocessors, static_cast<size_t>(shared_bytes)};
}

Result<void*> Allocate(size_t bytes) {
  void* device = nullptr;
  KVSHARE_RETURN_IF_ERROR(StatusOf(cudaMalloc(&device, bytes), "no memory"));
  return device;
}
Status Free(void* device) { return StatusOf(cudaFree(device), "memory is not freed"); }
// cudaMemcpy may return when the bytes are staged. Streams that do not wait for the default one would overtake them.
Status Upload(void* device, const void* host, size_t bytes) {
  KVSHARE_RETURN_IF_ERROR(StatusOf(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice), "no upload"));
  return Synchronize(nullptr);
}
Status Download(void* host, const void* device, size_t bytes) {
  return StatusOf(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost), "no download");
}
Status CopyOnDevice(void* to, const void* from, size_t bytes, void* stream) {
  return StatusOf(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(stream)),
                  "no copy on the device");
}
Status Synchronize(void* stream) {
  return StatusOf(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "a stream fails");
}
Result<void*> CreateStream() {
  cudaStream_t stream = nullptr;
  KVSHARE_RETURN_IF_ERROR(StatusOf(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "no stream"));
  return static_cast<void*>(stream);
}
Status DestroyStream(void* stream) {
  return StatusOf(cudaStreamDestroy(static_cast<cudaStream_t>(stream)), "a stream is not destroyed");
}

Status BeginCapture(void* stream) {
  return StatusOf(cudaStreamBeginCapture(static_cast<cudaStream_t>(stream), cudaStreamCaptureModeThreadLocal),
                  "no capture");
}
Result<std::unique_ptr<Graph>> EndCapture(void* stream) {
  cudaGraph_t graph = nullptr;
  KVSHARE_RETURN_IF_ERROR(StatusOf(cudaStreamEndCapture(static_cast<cudaStream_t>(stream), &graph), "no graph"));
  cudaGraphExec_t executable = nullptr;
  const Status made = StatusOf(cudaGraphInstantiate(&executable, graph, 0), "no executable graph");
  cudaGraphDestroy(graph);
  KVSHARE_RETURN_IF_ERROR(made);
  return std::unique_ptr<Graph>(std::make_unique<CudaGraph>(executable));
}

}  // namespace kvshare::cuda
