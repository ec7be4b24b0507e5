// A runtime without a device, as strict as a real one: it refuses launches outside the device's limits, and allocation
// and synchronisation while a stream is captured. Launches run at once; those of a captured stream run on replay.
#pragma once

#include <functional>

#include "cuda/emulation/emulator.h"
#include "cuda/runtime.h"

namespace kvshare::cuda::emulation {

// What the device is like from now on; default 132 multiprocessors and 227 KB, an H100.
void SetDevice(const DeviceFacts& facts);

Status Enqueue(const void* kernel, const gpu::Dim& grid, int threads, size_t shared_bytes, void* stream,
               std::function<void()> body);
Status AllowShared(const void* kernel, size_t bytes);

}  // namespace kvshare::cuda::emulation
