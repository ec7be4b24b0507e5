// The kernels of cuda_kernels.inc as data: what dispatch, tests and the budget check read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "cuda/device_call.h"
#include "cuda/places.h"
#include "kvshare/status.h"

namespace kvshare::cuda {

// How the work of one AttendKernel launch is cut, and where its partial results lie.
struct AttendGrid {
  int32_t splits = 1;
  int32_t row_tiles = 1;             // tiles of rows (token, head of the group) a KV head
  int32_t rows = 1;                  // of a tile
  int32_t D = 0;                     // of a row of partial_sums
  float* partial_sums = nullptr;     // [B, Hkv, row_tiles, splits, rows, D]
  float* partial_softmax = nullptr;  // [B, Hkv, row_tiles, splits, rows, 2]: maximum and sum of weights
};

// How a kernel reads its operands.
enum class KernelFamily : uint8_t {
  kDecodeWarp,  // tiles by asynchronous copies; rows are the columns of the products
  kPrefill,     // tiles of 16-bit elements; rows are the rows of the products, 64 a block
  kPlain,       // element by element: everything a call can say
};

struct AttendKernel {
  const char* name;
  KernelFamily family;
  DType element;  // of query and output; kPlain: any
  DType cache;    // of key and value; kPlain: any
  int32_t D;      // head sizes up to this one; kPlain: any
  int32_t rows;   // of a tile
  int32_t keys;   // that a block reads in a turn
  int32_t threads;
  size_t shared_bytes;  // kPlain: none but what PlainSharedBytes says
  Status (*launch)(const DeviceAttention& call, const AttendGrid& grid, void* stream);
};

// In the order in which dispatch looks through them; the last one serves everything.
std::span<const AttendKernel> AttendKernels();

// The rest of what a call launches.
Status LaunchMergeSplits(const DeviceAttention& call, const AttendGrid& grid, void* stream);
Status LaunchPrepareQuery(const DeviceAttention& call, const DeviceOutput& to, void* stream);
Status LaunchCountKeys(const DeviceAttention& call, void* stream);
Status LaunchDropRows(const DeviceAppend& call, void* stream);
Status LaunchAppendRows(const DeviceAppend& call, int64_t rows, void* stream);
Status LaunchPlaceSequences(const DeviceRules& rules, void* stream);
Status LaunchClear(void* data, size_t bytes, void* stream);

// Shared memory of the kernels that take any head size.
size_t PlainShared(int64_t D, int64_t Dv);
size_t AppendShared(int64_t D);

}  // namespace kvshare::cuda
