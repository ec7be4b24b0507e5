#include "cuda/backend.h"

#include <algorithm>
#include <cstdint>

#include "cuda/attend_cuda.h"
#include "cuda/places.h"
#include "cuda/runtime.h"

namespace kvshare::cuda {
namespace {

// Far beyond any position, so that sums with it stay in range.
constexpr int64_t kFar = int64_t{1} << 40;

// `otherwise`: what the field's default means.
DeviceNumbers NumbersOf(const Lengths& lengths, int64_t otherwise, int64_t least, int64_t most) {
  switch (lengths.kind) {
    case Lengths::Kind::kSame: return DeviceNumbers::Same(lengths.bound);
    case Lengths::Kind::kGiven:
    case Lengths::Kind::kLessOne:
      return {lengths.data, lengths.type == DType::kI64, lengths.kind == Lengths::Kind::kLessOne ? 1 : 0, least, most};
    case Lengths::Kind::kDefault:
    case Lengths::Kind::kAtEnd: break;
  }
  return DeviceNumbers::Same(otherwise);
}

DeviceNumbers Shifted(DeviceNumbers numbers, int64_t by) {
  numbers.add += by;
  numbers.least += by;
  numbers.most += by;
  return numbers;
}

// The numbers of a call before they are places.
struct Rules {
  DeviceNumbers length, rows, before;
  bool at_end = false;
  WindowCache cache;

  // Whether `before` takes more than a sum with a constant, so that a kernel must work it out.
  bool NeedKernel() const { return cache || (at_end && rows.data != nullptr); }
};

// Finds where each sequence stands on the device: [3, B] places, and [B, S] rotary positions behind them.
Result<DeviceRules> Place(const Rules& rules, bool appends, int64_t B, int64_t S, Exec& exec) {
  DeviceRules device;
  device.B = static_cast<int32_t>(B);
  device.S = static_cast<int32_t>(S);
  device.length = rules.length;
  device.rows = rules.rows;
  device.before = rules.before;
  device.at_end = rules.at_end;
  device.least_before = appends ? 0 : -S;
  device.cache = rules.cache;
  device.appends = appends;
  KVSHARE_ASSIGN_OR_RETURN(void* const memory, exec.memory.Take(static_cast<size_t>(B * (3 + S)) * sizeof(int64_t)));
  device.places = static_cast<int64_t*>(memory);
  device.rotary = device.places + 3 * B;
  KVSHARE_RETURN_IF_ERROR(LaunchPlaceSequences(device, exec.stream));
  return device;
}

DeviceNumbers Row(const DeviceRules& rules, int row, int64_t least, int64_t most) {
  return {rules.places + static_cast<int64_t>(row) * rules.B, true, 0, least, most};
}

// The most tokens that a sequence may count: a window-sized cache drops rows, so it counts more than it holds.
int64_t MostTokens(const Lengths& length, const WindowCache& cache, int64_t rows) {
  return cache ? std::min(length.bound, kFar) : rows;
}

// The lengths after an append that names none: past_length and all new rows. The kernel takes those off that are
// dropped.
DeviceNumbers DefaultLength(const AppendPositions& positions, int64_t S) { return Shifted(positions.past_length, S); }

Status AppendOnCuda(const AppendCall& host_call, Exec& exec) {
  AppendCall call = host_call;
  const int64_t B = call.present.batch;
  const int64_t S = call.fresh.tokens;
  const int64_t past_rows = call.past ? call.past.tokens : 0;
  if (B == 0 || call.present.tokens == 0) return {};
  Rules rules;
  rules.cache = call.cache;
  rules.at_end = call.past_length.kind == Lengths::Kind::kAtEnd;
  rules.rows = NumbersOf(call.fresh_length, S, 0, S);
  rules.length =
      NumbersOf(call.length, call.present.tokens, 0, MostTokens(call.length, call.cache, call.present.tokens));
  rules.before = rules.at_end ? Shifted(rules.length, -rules.rows.add)
                              : NumbersOf(call.past_length, 0, 0, MostTokens(call.past_length, call.cache, past_rows));
  AppendPositions positions;
  if (rules.NeedKernel()) {
    KVSHARE_ASSIGN_OR_RETURN(const DeviceRules places, Place(rules, /*appends=*/true, B, S, exec));
    positions.past_length = Row(places, 0, 0, past_rows);
    positions.length = Row(places, 1, 0, call.present.tokens);
    positions.skip = call.cache ? Row(places, 2, 0, past_rows + S) : NumbersOf(call.skip, 0, 0, past_rows + S);
    if (call.rotary_positions.data == nullptr) call.rotary_positions.data = places.rotary;
  } else {
    positions.past_length = rules.before;
    positions.past_length.least = std::max<int64_t>(positions.past_length.least, 0);
    positions.skip = NumbersOf(call.skip, 0, 0, past_rows + S);
    positions.length = call.length ? rules.length : DefaultLength(positions, S);
    positions.rotary_start = positions.past_length;
  }
  KVSHARE_ASSIGN_OR_RETURN(const DeviceFacts device, CurrentDevice());
  return AppendCuda(call, positions, device, exec.stream, exec.where);
}

Status ClearOnDevice(void* data, size_t bytes, Exec& exec) { return LaunchClear(data, bytes, exec.stream); }

Status AttendOnCuda(const AttentionCall& host_call, Exec& exec) {
  AttentionCall call = host_call;
  const int64_t B = call.query.batch;
  const int64_t S = call.query.tokens;
  const int64_t T = call.key.tokens;
  const Positions& given = call.positions;
  Rules rules;
  rules.cache = call.key_mask ? WindowCache() : given.cache;
  rules.at_end = given.query_position.kind == Lengths::Kind::kAtEnd;
  // A key mask numbers keys and queries itself.
  rules.rows = call.key_mask ? DeviceNumbers::Same(S) : NumbersOf(given.query_length, S, 0, S);
  rules.length =
      call.key_mask ? DeviceNumbers::Same(T) : NumbersOf(given.length, T, 0, MostTokens(given.length, given.cache, T));
  rules.before =
      rules.at_end ? Shifted(rules.length, -rules.rows.add) : NumbersOf(given.query_position, 0, -kFar, kFar);
  DevicePositions positions;
  positions.query_length = rules.rows;
  positions.first_column = NumbersOf(given.first_column, 0, 0, kFar);
  if (rules.NeedKernel()) {
    KVSHARE_ASSIGN_OR_RETURN(const DeviceRules places, Place(rules, /*appends=*/false, B, S, exec));
    positions.length = Row(places, 0, 0, T);
    positions.query_position = Row(places, 1, -kFar, kFar);
    if (rules.cache) positions.first_column = Row(places, 2, 0, kFar);
    if (call.rotary_positions.data == nullptr) call.rotary_positions.data = places.rotary;
  } else {
    positions.length = rules.length;
    positions.query_position = rules.before;
  }
  KVSHARE_ASSIGN_OR_RETURN(const DeviceFacts device, CurrentDevice());
  KVSHARE_ASSIGN_OR_RETURN(const AttendPlan plan, PlanAttend(call, positions, device, exec.where));
  void* scratch = nullptr;
  if (plan.scratch_bytes > 0) {
    KVSHARE_ASSIGN_OR_RETURN(scratch, exec.memory.Take(plan.scratch_bytes));
  }
  KVSHARE_RETURN_IF_ERROR(AttendCuda(plan, exec.stream, scratch));
  exec.kernel = plan.kernel->name;
  return {};
}

}  // namespace

Backend CudaBackend(const char* name, const char* provider) {
  return {name, provider, Memory::kDevice, PrepareKernels, AppendOnCuda, AttendOnCuda, ClearOnDevice};
}

}  // namespace kvshare::cuda
