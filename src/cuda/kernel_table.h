// The kernels of cuda_kernels.inc as data: what dispatch, tests and the budget check read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "cuda/device_call.h"
#include "kvshare/status.h"

namespace kvshare::cuda {

// How the work of one AttendKernel launch is cut, and where its partial results lie.
struct AttendGrid {
  int32_t splits = 1;
  int32_t row_tiles = 1;               // tiles of rows (token, head of the group) a KV head
  float* partial_sums = nullptr;       // [B, Hkv, row_tiles, splits, rows, D]
  float* partial_softmax = nullptr;    // [B, Hkv, row_tiles, splits, rows, 2]: maximum and sum
  const int32_t* key_positions = nullptr;  // [B, T] running counts of the key mask
};

// How a kernel reads its operands.
enum class KernelFamily : uint8_t {
  kDecodeWarp,  // 16-bit tiles by cp.async; heads are the columns of the products
  kPlain,       // element by element: everything a call can say
};

struct AttendKernel {
  const char* name;
  KernelFamily family;
  DType element;  // of query, key, value and output; kPlain: any
  int32_t D;      // head sizes up to this one; kPlain: any
  int32_t rows;   // of one tile
  int32_t keys;   // a block reads in one turn
  int32_t threads;
  size_t shared_bytes;  // kPlain: beside what the head sizes need
  Status (*launch)(const DeviceAttention& call, const AttendGrid& grid, size_t shared_bytes, void* stream);
};

std::span<const AttendKernel> AttendKernels();

}  // namespace kvshare::cuda
