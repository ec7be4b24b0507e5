// The kernels themselves, made into the table. Compiled twice: here for the emulator, and by nvcc as kernels.cu.
#include "cuda/append-inl.h"
#include "cuda/decode_warp-inl.h"
#include "cuda/kernel_table.h"
#include "cuda/key_counts-inl.h"
#include "cuda/launch.h"
#include "cuda/merge-inl.h"
#include "cuda/places-inl.h"
#include "cuda/plain-inl.h"
#include "cuda/prefill-inl.h"
#include "cuda/runtime.h"

namespace kvshare::cuda {
namespace {

using gpu::BF16;
using gpu::Half;

template <typename Element>
constexpr DType kTypeOf = DType::kF16;
template <>
constexpr DType kTypeOf<BF16> = DType::kBF16;
template <>
constexpr DType kTypeOf<float> = DType::kF32;
template <>
constexpr DType kTypeOf<I8> = DType::kI8;
template <>
constexpr DType kTypeOf<I4> = DType::kI4;
template <>
constexpr DType kTypeOf<F8E4M3> = DType::kF8E4M3;

constexpr int kMostShared = 227 << 10;  // of any device

unsigned Blocks(int64_t n) { return static_cast<unsigned>(n); }

template <typename Shape>
Status LaunchDecode(const DeviceAttention& call, const AttendGrid& grid, void* stream) {
  const int64_t tiles = int64_t{call.B} * call.Hkv * grid.row_tiles;
  const LaunchShape shape{{Blocks(tiles), Blocks(grid.splits)}, Shape::kThreads, Shape::kShared};
  return Launch(&DecodeWarpKernel<Shape>, shape, stream, call, grid);
}

template <typename Shape>
Status LaunchPrefill(const DeviceAttention& call, const AttendGrid& grid, void* stream) {
  const LaunchShape shape{{Blocks(int64_t{call.B} * call.Hkv * grid.row_tiles)}, Shape::kThreads, Shape::kShared};
  return Launch(&PrefillKernel<Shape>, shape, stream, call, grid);
}

Status LaunchPlain(const DeviceAttention& call, const AttendGrid& /*grid*/, void* stream) {
  const LaunchShape shape{
      {Blocks(int64_t{call.B} * call.Hq * call.S)}, kPlainThreads, PlainSharedBytes(call.D, call.Dv)};
  return Launch(&PlainKernel, shape, stream, call);
}

template <typename Shape>
constexpr AttendKernel RowOf(const char* name, KernelFamily family, int keys,
                             Status (*launch)(const DeviceAttention&, const AttendGrid&, void*)) {
  static_assert(Shape::kShared <= kMostShared);
  return {name,
          family,
          kTypeOf<typename Shape::Element>,
          kTypeOf<typename Shape::Code>,
          Shape::kD,
          Shape::kRows,
          keys,
          Shape::kThreads,
          Shape::kShared,
          launch};
}
template <typename Shape>
constexpr AttendKernel DecodeRow(const char* name) {
  return RowOf<Shape>(name, KernelFamily::kDecodeWarp, Shape::kKeys * Shape::kTeams, &LaunchDecode<Shape>);
}
template <typename Shape>
constexpr AttendKernel PrefillRow(const char* name) {
  return RowOf<Shape>(name, KernelFamily::kPrefill, Shape::kKeys, &LaunchPrefill<Shape>);
}

constexpr AttendKernel kKernels[] = {
#define KVSHARE_CUDA_DECODE(name, element, cache, D, tiles, warps, team, stages, in_registers) \
  DecodeRow<DecodeShape<element, cache, D, tiles, warps, team, stages, in_registers>>(#name),
#define KVSHARE_CUDA_PREFILL(name, element, D, keys, parts) PrefillRow<PrefillShape<element, D, keys, parts>>(#name),
#include "cuda/cuda_kernels.inc"
#undef KVSHARE_CUDA_DECODE
#undef KVSHARE_CUDA_PREFILL
    {"Plain", KernelFamily::kPlain, DType::kF32, DType::kF32, 0, 1, kPlainThreads, kPlainThreads, 0, &LaunchPlain},
};

template <typename Shape, typename Kernel>
Status Allow(Kernel kernel, size_t most) {
  return Shape::kShared <= most ? AllowShared(kernel, Shape::kShared) : Status();
}
template <typename Shape>
Status AllowDecode(size_t most) {
  return Allow<Shape>(&DecodeWarpKernel<Shape>, most);
}
template <typename Shape>
Status AllowPrefill(size_t most) {
  return Allow<Shape>(&PrefillKernel<Shape>, most);
}

}  // namespace

std::span<const AttendKernel> AttendKernels() { return kKernels; }

size_t PlainShared(int64_t D, int64_t Dv) { return PlainSharedBytes(D, Dv); }
size_t AppendShared(int64_t D) { return sizeof(float) * kRowWarps * static_cast<size_t>(D); }

Status PrepareKernels() {
  KVSHARE_ASSIGN_OR_RETURN(const DeviceFacts device, CurrentDevice());
  const size_t most = device.shared_bytes;
#define KVSHARE_CUDA_DECODE(name, element, cache, D, tiles, warps, team, stages, in_registers) \
  KVSHARE_RETURN_IF_ERROR(                                                                     \
      (AllowDecode<DecodeShape<element, cache, D, tiles, warps, team, stages, in_registers>>(most)));
#define KVSHARE_CUDA_PREFILL(name, element, D, keys, parts) \
  KVSHARE_RETURN_IF_ERROR((AllowPrefill<PrefillShape<element, D, keys, parts>>(most)));
#include "cuda/cuda_kernels.inc"
#undef KVSHARE_CUDA_PREFILL
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

Status LaunchCountKeys(const DeviceAttention& call, void* stream) {
  const LaunchShape shape{{Blocks(call.B)}, kCountThreads, sizeof(int32_t) * kCountThreads / 32};
  return Launch(&CountKeysKernel, shape, stream, call);
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
