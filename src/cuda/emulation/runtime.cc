#include "cuda/emulation/runtime.h"

#include <fmt/format.h>

#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "cuda/gpu.h"

namespace kvshare::cuda {
namespace {

// Shared memory that a block may have without AllowShared.
constexpr size_t kSharedUnasked = size_t{48} << 10;
constexpr unsigned kMostInYZ = 65535;
constexpr int kMostThreads = 1024;
constexpr size_t kAlignment = 256;  // cudaMalloc's

struct KeptLaunch {
  gpu::Dim grid;
  int threads;
  size_t shared_bytes;
  std::function<void()> body;
};

class KeptGraph : public Graph {
 public:
  Status Replay(void*) override {
    for (const KeptLaunch& launch : launches)
      gpu::emulation::RunGrid(launch.grid, launch.threads, launch.shared_bytes, launch.body);
    return {};
  }
  std::vector<KeptLaunch> launches;
};

struct Device {
  std::mutex mutex;  // one launch at a time
  DeviceFacts facts{132, size_t{227} << 10};
  std::map<const void*, size_t> allowed;  // shared bytes of a kernel
  std::map<void*, std::unique_ptr<KeptGraph>> captured;
};
Device& TheDevice() {
  static Device device;
  return device;
}

Status RefusedWhileCapturing(const char* what) {
  if (TheDevice().captured.empty()) return {};
  return Status::Internal(fmt::format("emulated CUDA: {} while a stream is captured", what));
}

}  // namespace

namespace emulation {

void SetDevice(const DeviceFacts& facts) {
  Device& device = TheDevice();
  device.facts = facts;
  device.allowed.clear();
}

Status AllowShared(const void* kernel, size_t bytes) {
  KVSHARE_RETURN_IF_ERROR(RefusedWhileCapturing("a function attribute is set"));
  Device& device = TheDevice();
  const std::lock_guard lock(device.mutex);
  if (bytes > device.facts.shared_bytes)
    return Status::Internal(fmt::format("emulated CUDA: a kernel asks for {} bytes of shared memory; needs at most {}",
                                        bytes, device.facts.shared_bytes));
  device.allowed[kernel] = bytes;
  return {};
}

Status Enqueue(const void* kernel, const gpu::Dim& grid, int threads, size_t shared_bytes, void* stream,
               std::function<void()> body) {
  Device& device = TheDevice();
  const std::lock_guard lock(device.mutex);
  const auto allowed = device.allowed.find(kernel);
  const size_t most = allowed == device.allowed.end() ? kSharedUnasked : std::max(kSharedUnasked, allowed->second);
  const bool fits = grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.y <= kMostInYZ && grid.z <= kMostInYZ &&
                    threads > 0 && threads % 32 == 0 && threads <= kMostThreads && shared_bytes <= most;
  if (!fits)
    return Status::Internal(
        fmt::format("emulated CUDA: a launch of ({}, {}, {}) blocks of {} threads and {} shared bytes; needs y and z "
                    "up to {}, whole warps up to {} threads and at most {} bytes",
                    grid.x, grid.y, grid.z, threads, shared_bytes, kMostInYZ, kMostThreads, most));
  const auto graph = device.captured.find(stream);
  if (graph != device.captured.end()) {
    graph->second->launches.push_back({grid, threads, shared_bytes, std::move(body)});
    return {};
  }
  // The graph would lack it.
  KVSHARE_RETURN_IF_ERROR(RefusedWhileCapturing("another stream gets a launch"));
  gpu::emulation::RunGrid(grid, threads, shared_bytes, body);
  return {};
}

}  // namespace emulation

Result<DeviceFacts> CurrentDevice() { return TheDevice().facts; }

Result<void*> Allocate(size_t bytes) {
  KVSHARE_RETURN_IF_ERROR(RefusedWhileCapturing("memory is allocated"));
  void* const device = ::operator new(bytes, std::align_val_t{kAlignment});
  std::memset(device, 0xFF, bytes);  // NaN
  return device;
}

Status Free(void* device) {
  KVSHARE_RETURN_IF_ERROR(RefusedWhileCapturing("memory is freed"));
  ::operator delete(device, std::align_val_t{kAlignment});
  return {};
}

Status Upload(void* device, const void* host, size_t bytes) {
  KVSHARE_RETURN_IF_ERROR(RefusedWhileCapturing("memory is copied"));
  std::memcpy(device, host, bytes);
  return {};
}

Status Download(void* host, const void* device, size_t bytes) {
  KVSHARE_RETURN_IF_ERROR(RefusedWhileCapturing("memory is copied"));
  std::memcpy(host, device, bytes);
  return {};
}

Status CopyOnDevice(void* to, const void* from, size_t bytes, void*) {
  KVSHARE_RETURN_IF_ERROR(RefusedWhileCapturing("memory is copied"));
  std::memcpy(to, from, bytes);
  return {};
}

Status Synchronize(void*) { return RefusedWhileCapturing("the host waits for a stream"); }

Result<void*> CreateStream() { return static_cast<void*>(new char); }

Status DestroyStream(void* stream) {
  delete static_cast<char*>(stream);
  return {};
}

Status BeginCapture(void* stream) {
  if (stream == nullptr) return Status::Internal("emulated CUDA: the default stream cannot be captured");
  KVSHARE_RETURN_IF_ERROR(RefusedWhileCapturing("a capture begins"));
  TheDevice().captured[stream] = std::make_unique<KeptGraph>();
  return {};
}

Result<std::unique_ptr<Graph>> EndCapture(void* stream) {
  const auto graph = TheDevice().captured.extract(stream);
  if (graph.empty()) return Status::Internal("emulated CUDA: the stream is not captured");
  return std::unique_ptr<Graph>(std::move(graph.mapped()));
}

}  // namespace kvshare::cuda
