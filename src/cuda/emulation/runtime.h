// A runtime without a device, as strict as a real one: it refuses launches outside the device's limits, and allocation
// and synchronisation while a stream is captured. Launches run at once; those of a captured stream run on replay.
#pragma once

#include <functional>

#include "cuda/emulation/emulator.h"
#include "cuda/runtime.h"

namespace kvshare::cuda::emulation {

// Sets the facts of the emulated device. By default they are an H100's: 132 multiprocessors, 227 KB of shared memory.
void SetDevice(const DeviceFacts& facts);

Status Enqueue(const void* kernel, const gpu::Dim& grid, int threads, size_t shared_bytes, void* stream,
               std::function<void()> body);
Status AllowShared(const void* kernel, size_t bytes);

}  // namespace kvshare::cuda::emulation
