// Attend and Append: plan, share out the units, merge.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <new>
#include <span>

#include "attention/simd_target.h"
#include "attention/unit.h"
#include "core/place_sequences.h"
#include "kvshare/attend.h"

namespace kvshare {
namespace {

// Carves 64-byte aligned arrays from one block; with a null block it only measures.
class Carver {
 public:
  explicit Carver(void* memory) : memory_(static_cast<std::byte*>(memory)) {}
  template <typename T>
  T* Take(int64_t count) {
    std::byte* p = memory_ == nullptr ? nullptr : memory_ + offset_;
    offset_ += (count * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(p);
  }
  size_t bytes() const { return offset_; }

 private:
  std::byte* memory_;
  size_t offset_ = 0;
};

size_t PlacePartials(Job& job, int64_t value_stride, void* memory) {
  Carver carver(memory);
  const int64_t slots = job.items() * job.plan.splits * job.rows();
  job.partial_max = carver.Take<float>(slots);
  job.partial_sum = carver.Take<float>(slots);
  job.partial_out = carver.Take<float>(slots * value_stride);
  return carver.bytes();
}

struct UnitTask {
  const Job* job;
  const UnitCode* code;
  WorkspacePool* pool;
  size_t scratch_bytes;
  std::atomic<bool>* out_of_memory;  // set by units, which may run on threads that nothing may be thrown through
};

using UnitFunction = void (*UnitCode::*)(const Job& job, int64_t unit, void* scratch);

template <UnitFunction kRun>
void RunInScratch(void* arg, int64_t unit) {
  const auto& task = *static_cast<const UnitTask*>(arg);
  try {
    const WorkspacePool::Lease scratch(*task.pool, task.scratch_bytes);
    (task.code->*kRun)(*task.job, unit, scratch.data());
  } catch (const std::bad_alloc&) {
    task.out_of_memory->store(true, std::memory_order_relaxed);
  }
}

void MergeTask(void* arg, int64_t item_row) {
  const auto& task = *static_cast<const UnitTask*>(arg);
  task.code->merge(*task.job, item_row);
}

// Work that one thread has done before another has woken up: partial sums to merge, products of a call, bytes to
// append.
constexpr int64_t kSerialMergeFloats = 32 << 10;
constexpr int64_t kSerialProducts = 64 << 10;
constexpr int64_t kSerialAppendBytes = 64 << 10;

// Products of queries and keys, and of weights and values.
int64_t Products(const AttentionCall& call, std::span<const KeyRange> ranges, int64_t range_heads) {
  int64_t pairs = 0;
  for (const KeyRange& range : ranges) pairs += range.end - range.begin;
  return pairs * (call.query.heads / range_heads) * (call.key.head_size + call.value.head_size);
}

// Elements of a mask that a task looks through.
constexpr int64_t kTrimElements = 256 << 10;

struct TrimJob {
  const Job* job;
  const UnitCode* code;
  KeyRange* ranges;
  bool* masked;
  int64_t rows;  // of a task; a row is that of a position, or of each head of it
};

void TrimTask(void* arg, int64_t task) {
  const auto& trim = *static_cast<const TrimJob*>(arg);
  const AttentionCall& call = *trim.job->call;
  const int64_t S = call.query.tokens;
  const int64_t heads = trim.job->range_heads;
  const int64_t end = std::min((task + 1) * trim.rows, call.query.batch * S * heads);
  for (int64_t row = task * trim.rows; row < end; ++row) {
    const int64_t token = row / heads;
    const MaskedRange left = trim.code->trim_range(*trim.job, token / S, token % S, row % heads, trim.ranges[row]);
    trim.ranges[row] = left.range;
    trim.masked[row] = left.masked;
  }
}

// Not where scores are asked for: a hidden key has one there.
bool MaskTrims(const AttentionCall& call) { return call.mask && call.mask.key_stride == 1 && !call.scores; }

// [rows] becomes [rows, heads], each row's range for every head.
void RepeatRanges(int64_t rows, int64_t heads, KeyRange* ranges) {
  for (int64_t row = rows - 1; row >= 0; --row) std::fill_n(ranges + row * heads, heads, KeyRange(ranges[row]));
}

// No row of K or V is read for what a mask hides at the ends of the ranges.
void TrimRanges(const Job& job, const UnitCode& code, const ParallelFor& parallel, KeyRange* ranges, bool* masked) {
  const AttentionCall& call = *job.call;
  TrimJob trim{&job, &code, ranges, masked,
               std::max<int64_t>(1, kTrimElements / std::max<int64_t>(1, call.key.tokens))};
  const int64_t rows = call.query.batch * call.query.tokens * job.range_heads;
  if (job.range_heads > 1) RepeatRanges(rows / job.range_heads, job.range_heads, ranges);
  parallel.run(parallel.context, (rows + trim.rows - 1) / trim.rows, &TrimTask, &trim);
}

Status OutOfMemory() { return Status::Internal("out of memory for the scratch of an attention call"); }
Status NoKernelForF64() { return Status::Refused("no SIMD kernel for f64; AttendOracle and AppendOracle compute it"); }

// The keys that each row of a call sees: filled before the plan, read until the call ends.
struct RowMemory {
  SequencePlace* sequences = nullptr;  // [B]
  KeyRange* ranges = nullptr;          // [rows]
  bool* holes = nullptr;               // [B]
  bool* masked = nullptr;              // [rows]
};

size_t PlaceRows(int64_t batch, int64_t rows, void* memory, RowMemory& out) {
  Carver carver(memory);
  out.sequences = carver.Take<SequencePlace>(batch);
  out.ranges = carver.Take<KeyRange>(rows);
  out.holes = carver.Take<bool>(batch);
  out.masked = carver.Take<bool>(rows);
  return carver.bytes();
}

// The units of a planned job, and the merge of items that are split.
Status RunUnits(Job& job, const UnitCode& code, const ParallelFor& for_units, const ParallelFor& parallel,
                WorkspacePool& pool) {
  std::atomic<bool> out_of_memory = false;
  UnitTask task{&job, &code, &pool, code.scratch_bytes(job), &out_of_memory};
  if (job.plan.splits == 1) {
    for_units.run(for_units.context, job.items(), &RunInScratch<&UnitCode::run>, &task);
    return out_of_memory ? OutOfMemory() : Status();
  }
  const int64_t value_stride = code.value_stride(job);
  const WorkspacePool::Lease partials(pool, PlacePartials(job, value_stride, nullptr));
  PlacePartials(job, value_stride, partials.data());
  for_units.run(for_units.context, job.items() * job.plan.splits, &RunInScratch<&UnitCode::run>, &task);
  if (out_of_memory) return OutOfMemory();
  const int64_t merged_rows = job.items() * job.rows();
  const bool short_merge = merged_rows * job.plan.splits * value_stride <= kSerialMergeFloats;
  const ParallelFor merge = short_merge ? ParallelFor::Serial() : parallel;
  merge.run(merge.context, merged_rows, &MergeTask, &task);
  return {};
}

Status WriteScores(Job job, const UnitCode& code, const ParallelFor& for_units, WorkspacePool& pool) {
  std::atomic<bool> out_of_memory = false;
  job.plan = PlanScores(*job.call);
  UnitTask task{&job, &code, &pool, code.scratch_bytes(job), &out_of_memory};
  for_units.run(for_units.context, job.items(), &RunInScratch<&UnitCode::scores>, &task);
  return out_of_memory ? OutOfMemory() : Status();
}

// Attend, but for what its own thread's allocations throw.
Status AttendOrThrow(const AttentionCall& call, const ParallelFor& parallel, WorkspacePool& pool) {
  if (call.query.batch == 0 || call.query.tokens == 0) return {};
  if (call.query.type == DType::kF64) return NoKernelForF64();
  KVSHARE_RETURN_IF_ERROR(LimitSimdTarget());
  const UnitCode code = GetUnitCode();
  Job job;
  job.call = &call;
  const bool trims = MaskTrims(call);
  if (trims && call.mask.head_stride != 0) job.range_heads = call.query.heads;
  const int64_t rows = call.query.batch * call.query.tokens * job.range_heads;
  RowMemory of;
  const WorkspacePool::Lease row_memory(pool, PlaceRows(call.query.batch, rows, nullptr, of));
  PlaceRows(call.query.batch, rows, row_memory.data(), of);
  for (int64_t b = 0; b < call.query.batch; ++b) of.sequences[b] = PlaceOf(call, b);
  FillKeyRanges(call, of.sequences, of.ranges, of.holes);

  job.sequences = of.sequences;
  job.ranges = of.ranges;
  job.holes = of.holes;
  if (trims) {
    TrimRanges(job, code, parallel, of.ranges, of.masked);
    job.masked = of.masked;
  }
  const std::span<const KeyRange> ranges(of.ranges, static_cast<size_t>(rows));
  KVSHARE_ASSIGN_OR_RETURN(job.plan, MakePlan(call, ranges, code.traits));
  const bool is_short = Products(call, ranges, job.range_heads) <= kSerialProducts;
  const ParallelFor for_units = is_short ? ParallelFor::Serial() : parallel;
  if (call.scores) KVSHARE_RETURN_IF_ERROR(WriteScores(job, code, for_units, pool));
  return RunUnits(job, code, for_units, parallel, pool);
}

}  // namespace

Status Attend(const AttentionCall& call, const ParallelFor& parallel, WorkspacePool& pool) {
  try {
    return AttendOrThrow(call, parallel, pool);
  } catch (const std::bad_alloc&) {
    return OutOfMemory();
  }
}

namespace {

constexpr int64_t kAppendRows = 256;  // rows of one head a task copies

struct AppendJob {
  const AppendCall* call;
  const UnitCode* code;
  WorkspacePool* pool;
  int64_t first, stretch, stretches;  // rows [first + i*stretch, ...) of every head
  std::atomic<bool>* out_of_memory;   // as in UnitTask
};

// One row as f32, in whole vectors of any target.
size_t AppendScratchBytes(int64_t head_size) { return static_cast<size_t>((head_size + 15) / 16 * 64); }

void AppendTask(void* arg, int64_t i) {
  const auto& job = *static_cast<const AppendJob*>(arg);
  const MutableHeadsView& present = job.call->present;
  const int64_t begin = job.first + i % job.stretches * job.stretch;
  const int64_t head = i / job.stretches % present.heads;
  const int64_t b = i / job.stretches / present.heads;
  try {
    const WorkspacePool::Lease row(*job.pool, AppendScratchBytes(present.head_size));
    job.code->append(*job.call, PlaceOf(*job.call, b), b, head, begin, std::min(begin + job.stretch, present.tokens),
                     static_cast<float*>(row.data()));
  } catch (const std::bad_alloc&) {
    job.out_of_memory->store(true, std::memory_order_relaxed);
  }
}

struct Pasts {
  int64_t shortest = std::numeric_limits<int64_t>::max();
  int64_t longest = 0;
  bool moves = false;  // rows are dropped before some of them
};

Pasts PastsOf(const AppendCall& call) {
  Pasts pasts;
  for (int64_t b = 0; b < call.present.batch; ++b) {
    const AppendPlace place = PlaceOf(call, b);
    pasts.shortest = std::min(pasts.shortest, place.past_length);
    pasts.longest = std::max(pasts.longest, place.past_length);
    pasts.moves = pasts.moves || place.skip > 0;
  }
  return pasts;
}

}  // namespace

Status Append(const AppendCall& call, const ParallelFor& parallel, WorkspacePool& pool) {
  const MutableHeadsView& present = call.present;
  if (present.batch == 0 || present.tokens == 0) return {};
  if (present.type == DType::kF64) return NoKernelForF64();
  // In place only the new rows are touched; all sequences share the span from the shortest past to the longest. Where
  // rows move down over dropped ones, a head's rows go in order, by one task.
  int64_t begin = 0;
  int64_t end = present.tokens;
  int64_t stretch = kAppendRows;
  if (call.past.data == present.data) {
    const auto [shortest, longest, moves] = PastsOf(call);
    begin = moves ? 0 : shortest;
    end = std::min(present.tokens, longest + call.fresh.tokens);
    if (moves) stretch = end;
  }
  if (begin >= end) return {};
  const UnitCode code = GetUnitCode();
  std::atomic<bool> out_of_memory = false;
  AppendJob job{&call, &code, &pool, begin, stretch, (end - begin + stretch - 1) / stretch, &out_of_memory};
  const int64_t bytes = present.batch * present.heads * (end - begin) * BytesOf(present.type, present.head_size);
  const ParallelFor tasks = bytes <= kSerialAppendBytes ? ParallelFor::Serial() : parallel;
  tasks.run(tasks.context, present.batch * present.heads * job.stretches, &AppendTask, &job);
  return out_of_memory ? OutOfMemory() : Status();
}

const char* SimdTarget() { return GetUnitCode().target; }

ParallelFor ParallelFor::Serial() {
  return {nullptr, [](void*, int64_t n, void (*body)(void*, int64_t), void* arg) {
            for (int64_t i = 0; i < n; ++i) body(arg, i);
          }};
}

}  // namespace kvshare
