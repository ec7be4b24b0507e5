// The kernels themselves, made into the table. Compiled twice: here for the emulator, and by nvcc as kernels.cu.
#include "cuda/append-inl.h"
#include "cuda/decode_warp-inl.h"
#include "cuda/kernel_table.h"
#include "cuda/launch.h"
#include "cuda/merge-inl.h"
#include "cuda/places-inl.h"
#include "cuda/plain-inl.h"
#include "cuda/runtime.h"

namespace kvshare::cuda {
namespace {

using gpu::BF16;
using gpu::Half;

template <typename Element>
constexpr DType kTypeOf = DType::kF16;
template <>
constexpr DType kTypeOf<BF16> = DType::kBF16;

constexpr int kMostShared = 227 << 10;  // of any device

unsigned Blocks(int64_t n) { return static_cast<unsigned>(n); }

template <typename Shape>
Status LaunchDecode(const DeviceAttention& call, const AttendGrid& grid, void* stream) {
  const int64_t tiles = int64_t{call.B} * call.Hkv * grid.row_tiles;
  const LaunchShape shape{{Blocks(tiles), Blocks(grid.splits)}, Shape::kThreads, Shape::kShared};
  return Launch(&DecodeWarpKernel<Shape>, shape, stream, call, grid);
}

Status LaunchPlain(const DeviceAttention& call, const AttendGrid& grid, void* stream) {
  const LaunchShape shape{
      {Blocks(int64_t{call.B} * call.Hq * call.S)}, kPlainThreads, PlainSharedBytes(call.D, call.Dv)};
  return Launch(&PlainKernel, shape, stream, call, grid);
}

template <typename Shape>
constexpr AttendKernel RowOf(const char* name) {
  static_assert(Shape::kShared <= kMostShared);
  return {name,
          KernelFamily::kDecodeWarp,
          kTypeOf<typename Shape::Element>,
          Shape::kD,
          Shape::kRows,
          Shape::kKeys * Shape::kWarps,
          Shape::kThreads,
          Shape::kShared,
          &LaunchDecode<Shape>};
}

constexpr AttendKernel kKernels[] = {
#define KVSHARE_CUDA_DECODE(name, element, D, tiles, warps, stages, in_registers) \
  RowOf<DecodeShape<element, D, tiles, warps, stages, in_registers>>(#name),
#include "cuda/cuda_kernels.inc"
#undef KVSHARE_CUDA_DECODE
    {"Plain", KernelFamily::kPlain, DType::kF32, 0, 1, kPlainThreads, kPlainThreads, 0, &LaunchPlain},
};

template <typename Shape>
Status PrepareDecode(size_t most) {
  return Shape::kShared <= most ? AllowShared(&DecodeWarpKernel<Shape>, Shape::kShared) : Status();
}

}  // namespace

std::span<const AttendKernel> AttendKernels() { return kKernels; }

size_t PlainShared(int64_t D, int64_t Dv) { return PlainSharedBytes(D, Dv); }
size_t AppendShared(int64_t D) { return sizeof(float) * kRowWarps * static_cast<size_t>(D); }

Status PrepareKernels() {
  KVSHARE_ASSIGN_OR_RETURN(const DeviceFacts device, CurrentDevice());
  const size_t most = device.shared_bytes;
#define KVSHARE_CUDA_DECODE(name, element, D, tiles, warps, stages, in_registers) \
  KVSHARE_RETURN_IF_ERROR((PrepareDecode<DecodeShape<element, D, tiles, warps, stages, in_registers>>(most)));
#include "cuda/cuda_kernels.inc"
#undef KVSHARE_CUDA_DECODE
  KVSHARE_RETURN_IF_ERROR(AllowShared(&PlainKernel, most));
  KVSHARE_RETURN_IF_ERROR(AllowShared(&PrepareQueryKernel, most));
  return AllowShared(&AppendRowsKernel, most);
}

Status LaunchMergeSplits(const DeviceAttention& call, const AttendGrid& grid, void* stream) {
  const LaunchShape shape{{Blocks(int64_t{call.B} * call.Hq * call.S)}, kMergeThreads, 0};
  return Launch(&MergeSplitsKernel, shape, stream, call, grid);
}

Status LaunchPrepareQuery(const DeviceAttention& call, const DeviceOutput& to, void* stream) {
  const int64_t rows = int64_t{call.B} * call.Hq * call.S;
  const LaunchShape shape{{Blocks((rows + kRowWarps - 1) / kRowWarps)}, kRowWarps * 32, AppendShared(call.D)};
  return Launch(&PrepareQueryKernel, shape, stream, call, to);
}

Status LaunchCountKeys(const DeviceAttention& call, int32_t* counts, void* stream) {
  const LaunchShape shape{{Blocks(call.B)}, kCountThreads, sizeof(int32_t) * kCountThreads};
  return Launch(&CountKeysKernel, shape, stream, call, counts);
}

Status LaunchDropRows(const DeviceAppend& call, void* stream) {
  constexpr int kThreads = kRowWarps * 32;
  const int64_t bytes = BytesOf(call.present.type, call.D);
  const LaunchShape shape{{Blocks((bytes + kThreads - 1) / kThreads), Blocks(call.H), Blocks(call.B)}, kThreads, 0};
  return Launch(&DropRowsKernel, shape, stream, call);
}

Status LaunchAppendRows(const DeviceAppend& call, int64_t rows, void* stream) {
  const LaunchShape shape{{Blocks((rows + kRowWarps - 1) / kRowWarps), Blocks(call.H), Blocks(call.B)},
                          kRowWarps * 32,
                          AppendShared(call.D)};
  return Launch(&AppendRowsKernel, shape, stream, call);
}

Status LaunchPlaceSequences(const DeviceRules& rules, void* stream) {
  const LaunchShape shape{{Blocks((int64_t{rules.B} + kPlaceThreads - 1) / kPlaceThreads)}, kPlaceThreads, 0};
  return Launch(&PlaceSequencesKernel, shape, stream, rules);
}

Status LaunchClear(void* data, size_t bytes, void* stream) {
  if (bytes == 0) return {};
  const size_t blocks = std::min((bytes + kClearThreads - 1) / kClearThreads, kMostClearBlocks);
  return Launch(&ClearKernel, {{static_cast<unsigned>(blocks)}, kClearThreads, 0}, stream, static_cast<char*>(data),
                static_cast<int64_t>(bytes));
}

}  // namespace kvshare::cuda
