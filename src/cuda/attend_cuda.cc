#include "cuda/attend_cuda.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

namespace kvshare::cuda {
namespace {

constexpr size_t kAlignment = 256;
constexpr int kMostSplits = 256;
// More rows a KV head go to prefill kernels, which do not split keys. Not measured: nothing here has run on a card.
constexpr int64_t kDecodeRows = 32;

size_t Rounded(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

template <typename View>
DeviceHeads HeadsOf(const View& view) {
  return {view.data,         view.type,        view.batch_stride,     view.head_stride,
          view.token_stride, view.quant.scale, view.quant.per_channel};
}

DeviceOutput OutputOf(const MutableHeadsView& view) {
  return {view.data,         view.type,        view.batch_stride,     view.head_stride,
          view.token_stride, view.quant.scale, view.quant.per_channel};
}

DeviceRow RowOf(const NormView& norm, const RotaryView& rotary, const RotaryPositions& positions) {
  DeviceRow row;
  row.norm_weight = norm.weight;
  row.norm_type = norm.type;
  row.norm_epsilon = norm.epsilon;
  row.cos = rotary.cos;
  row.sin = rotary.sin;
  row.rotary_type = rotary.type;
  row.max_positions = rotary.max_positions;
  row.half = static_cast<int32_t>(rotary.half);
  row.interleaved = rotary.interleaved;
  row.positions = positions.data;
  row.same_start = positions.same_start;
  return row;
}

DeviceAttention OnDevice(const AttentionCall& call, const DevicePositions& positions) {
  DeviceAttention device;
  device.B = static_cast<int32_t>(call.query.batch);
  device.Hq = static_cast<int32_t>(call.query.heads);
  device.Hkv = static_cast<int32_t>(call.key.heads);
  device.S = static_cast<int32_t>(call.query.tokens);
  device.T = static_cast<int32_t>(call.key.tokens);
  device.D = static_cast<int32_t>(call.query.head_size);
  device.Dv = static_cast<int32_t>(call.value.head_size);
  device.query = HeadsOf(call.query);
  device.key = HeadsOf(call.key);
  device.value = HeadsOf(call.value);
  device.output = OutputOf(call.output);
  device.scale = static_cast<float>(call.spec.scale);
  device.softcap = call.spec.softcap;
  device.window_left = call.spec.window_left;
  device.window_right = call.spec.window_right;
  device.has_sink = call.spec.smooth_softmax || call.spec.head_sink != nullptr;
  device.head_sink = call.spec.head_sink;
  device.head_sink_type = call.spec.head_sink_type;
  device.length = positions.length;
  device.query_position = positions.query_position;
  device.query_length = positions.query_length;
  device.first_column = positions.first_column;
  device.mask = call.mask;
  device.key_mask = call.key_mask.data;
  device.key_mask_type = call.key_mask.type;
  device.key_mask_stride = call.key_mask.batch_stride;
  device.query_row = RowOf(call.norm, call.rotary, call.rotary_positions);
  device.scores = {call.scores.data, call.scores.type, call.scores.stage, call.scores ? call.scores.keys : 0,
                   call.scores.outside};
  return device;
}

// Whether rows can be read in pieces of `bytes`.
template <typename Heads>
bool InPieces(const Heads& heads, uintptr_t bytes) {
  const int64_t elements = 32 * static_cast<int64_t>(bytes) / BytesOf(heads.type, 32);
  return reinterpret_cast<uintptr_t>(heads.data) % bytes == 0 && heads.batch_stride % elements == 0 &&
         heads.head_stride % elements == 0 && heads.token_stride % elements == 0;
}

bool Prepares(const DeviceAttention& call) {
  return call.query_row.norm_weight != nullptr || call.query_row.cos != nullptr;
}

// Whether tile kernels can serve the call, if one has its types. The plain kernel serves all other calls.
bool InTiles(const DeviceAttention& call) {
  if (call.output.type != call.query.type || call.value.type != call.key.type) return false;
  if (call.D != call.Dv || call.scores.data != nullptr) return false;
  return BytesOf(call.key.type, call.D) % 16 == 0 && InPieces(call.key, 16) && InPieces(call.value, 16) &&
         InPieces(call.output, 4) && (Prepares(call) || InPieces(call.query, 4));
}

int64_t RowsOf(const DeviceAttention& call) { return int64_t{call.Hq} / call.Hkv * call.S; }

// Whether `a` suits a call with `rows` rows better than `b`, both of which serve it.
bool Suits(const AttendKernel& a, const AttendKernel& b, int64_t rows) {
  if (a.family != b.family) return (a.family == KernelFamily::kPrefill) == (rows > kDecodeRows);
  if (a.D != b.D) return a.D < b.D;
  return b.rows < rows && a.rows > b.rows;
}

const AttendKernel* Choose(const DeviceAttention& call, const DeviceFacts& device) {
  const bool in_tiles = InTiles(call), in_prefill = Prepares(call) || InPieces(call.query, 16);
  const AttendKernel* best = nullptr;
  for (const AttendKernel& kernel : AttendKernels()) {
    if (kernel.family == KernelFamily::kPlain) return best != nullptr ? best : &kernel;
    const bool serves = in_tiles && kernel.element == call.query.type && kernel.cache == call.key.type &&
                        kernel.D >= call.D && kernel.shared_bytes <= device.shared_bytes &&
                        (in_prefill || kernel.family != KernelFamily::kPrefill);
    if (serves && (best == nullptr || Suits(kernel, *best, RowsOf(call)))) best = &kernel;
  }
  return best;
}

// Keys that a row tile may see, whatever the lengths.
int64_t Reach(const DeviceAttention& call, const AttendKernel& kernel) {
  if (call.window_left < 0 || call.window_right < 0) return call.T;
  const int64_t group = call.Hq / call.Hkv;
  const int64_t tokens = std::min<int64_t>(call.S, (kernel.rows + group - 1) / group + 1);
  return std::min<int64_t>(call.T, call.window_left + call.window_right + tokens);
}

// How many splits make as many blocks as fill the device once. A CUDA graph keeps the number when lengths change.
int SplitsOf(const DeviceAttention& call, const AttendKernel& kernel, int64_t tiles, const DeviceFacts& device) {
  const auto blocks_at_once = static_cast<int64_t>(device.shared_bytes / kernel.shared_bytes) * device.multiprocessors;
  const int64_t turns = (Reach(call, kernel) + kernel.keys - 1) / kernel.keys;
  const int64_t wanted = std::min<int64_t>(blocks_at_once / std::max<int64_t>(tiles, 1), kMostSplits);
  return static_cast<int>(std::max<int64_t>(1, std::min(wanted, turns)));
}

// Parts of the scratch memory, in this order.
struct Scratch {
  size_t query = 0;  // bytes of each
  size_t sums = 0;
  size_t softmax = 0;
  size_t counts = 0;  // and as much for the kept keys

  explicit Scratch(const AttendPlan& plan) {
    const DeviceAttention& call = plan.call;
    const bool tiled = plan.kernel->family != KernelFamily::kPlain;
    const auto rows = static_cast<size_t>(call.B) * static_cast<size_t>(call.Hq) * static_cast<size_t>(call.S);
    if (tiled && Prepares(call)) query = Rounded(rows * static_cast<size_t>(call.D) * SizeOf(call.query.type));
    if (plan.splits > 1) {
      const auto slots =
          static_cast<size_t>(int64_t{call.B} * call.Hkv * plan.row_tiles * plan.splits * plan.kernel->rows);
      sums = Rounded(slots * static_cast<size_t>(plan.kernel->D) * sizeof(float));
      softmax = Rounded(slots * 2 * sizeof(float));
    }
    if (call.key_mask != nullptr)
      counts = Rounded(static_cast<size_t>(call.B) * static_cast<size_t>(call.T) * sizeof(int32_t));
  }
  size_t bytes() const { return query + sums + softmax + 2 * counts; }
};

Status RefuseF64(DType type, std::string_view where) {
  if (type != DType::kF64) return {};
  return Status::Refused(fmt::format("{}: no CUDA kernel for f64; have f32, f16 and bf16", where));
}

}  // namespace

Result<AttendPlan> PlanAttend(const AttentionCall& call, const DevicePositions& positions, const DeviceFacts& device,
                              std::string_view where) {
  KVSHARE_RETURN_IF_ERROR(RefuseF64(call.query.type, where));
  AttendPlan plan;
  plan.call = OnDevice(call, positions);
  plan.kernel = Choose(plan.call, device);
  if (plan.kernel->family == KernelFamily::kPlain) {
    if (PlainShared(plan.call.D, plan.call.Dv) > device.shared_bytes)
      return Status::Refused(
          fmt::format("{}: head sizes {} and {} need {} bytes of a block's memory; the device has {}", where,
                      plan.call.D, plan.call.Dv, PlainShared(plan.call.D, plan.call.Dv), device.shared_bytes));
  } else {
    plan.row_tiles = static_cast<int>((RowsOf(plan.call) + plan.kernel->rows - 1) / plan.kernel->rows);
    if (plan.kernel->family == KernelFamily::kDecodeWarp)
      plan.splits = SplitsOf(plan.call, *plan.kernel, int64_t{plan.call.B} * plan.call.Hkv * plan.row_tiles, device);
  }
  plan.scratch_bytes = Scratch(plan).bytes();
  return plan;
}

Status AttendCuda(const AttendPlan& plan, void* stream, void* scratch) {
  DeviceAttention call = plan.call;
  if (call.B == 0 || call.S == 0) return {};
  const Scratch parts(plan);
  char* next = static_cast<char*>(scratch);
  const auto take = [&](size_t bytes) {
    char* const part = bytes > 0 ? next : nullptr;
    next += bytes;
    return static_cast<void*>(part);
  };
  void* const query = take(parts.query);
  AttendGrid grid;
  grid.splits = plan.splits;
  grid.row_tiles = plan.row_tiles;
  grid.rows = plan.kernel->rows;
  grid.D = plan.kernel->D;
  grid.partial_sums = static_cast<float*>(take(parts.sums));
  grid.partial_softmax = static_cast<float*>(take(parts.softmax));
  call.key_counts = static_cast<int32_t*>(take(parts.counts));
  call.kept_keys = static_cast<int32_t*>(take(parts.counts));
  if (call.key_mask != nullptr) KVSHARE_RETURN_IF_ERROR(LaunchCountKeys(call, stream));
  if (query != nullptr) {
    const auto prepared = MutableHeadsView::Bnsh(query, call.query.type, call.B, call.Hq, call.S, call.D);
    KVSHARE_RETURN_IF_ERROR(LaunchPrepareQuery(call, OutputOf(prepared), stream));
    call.query = HeadsOf(prepared);
    call.query_row = {};
  }
  KVSHARE_RETURN_IF_ERROR(plan.kernel->launch(call, grid, stream));
  return plan.splits > 1 ? LaunchMergeSplits(call, grid, stream) : Status();
}

Status AppendCuda(const AppendCall& call, const AppendPositions& positions, const DeviceFacts& device, void* stream,
                  std::string_view where) {
  KVSHARE_RETURN_IF_ERROR(RefuseF64(call.present.type, where));
  DeviceAppend append;
  append.B = static_cast<int32_t>(call.present.batch);
  append.H = static_cast<int32_t>(call.present.heads);
  append.S = static_cast<int32_t>(call.fresh.tokens);
  append.D = static_cast<int32_t>(call.present.head_size);
  append.past_tokens = call.past ? call.past.tokens : 0;
  append.present_tokens = call.present.tokens;
  append.in_place = call.past.data == call.present.data;
  append.past = HeadsOf(call.past);
  append.fresh = HeadsOf(call.fresh);
  append.present = OutputOf(call.present);
  append.past_length = positions.past_length;
  append.length = positions.length;
  append.skip = positions.skip;
  append.rotary_start = positions.rotary_start;
  append.fresh_row = RowOf(call.norm, call.rotary, call.rotary_positions);
  if (append.B == 0) return {};
  if (AppendShared(append.D) > device.shared_bytes)
    return Status::Refused(fmt::format("{}: head size {} needs {} bytes of a block's memory; the device has {}", where,
                                       append.D, AppendShared(append.D), device.shared_bytes));
  const bool drops = positions.skip.data != nullptr || positions.skip.add != 0;
  if (append.in_place && drops) KVSHARE_RETURN_IF_ERROR(LaunchDropRows(append, stream));
  const int64_t rows = append.in_place ? append.S : append.present_tokens;
  return rows > 0 ? LaunchAppendRows(append, rows, stream) : Status();
}

}  // namespace kvshare::cuda
