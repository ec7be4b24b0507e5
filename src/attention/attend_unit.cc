// The per-target code: one unit of attention, and the merge of its splits.
#include "attention/unit.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/attend_unit.cc"
#include <hwy/foreach_target.h>
// The order matters: foreach_target.h first.
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "attention/append-inl.h"
#include "attention/kernel_code-inl.h"
#include "attention/load-inl.h"
#include "attention/mask-inl.h"
#include "attention/matrix-inl.h"
#include "attention/place-inl.h"
#include "attention/query-inl.h"
#include "attention/scores-inl.h"
#include "attention/simd_target.h"
#include "attention/softmax-inl.h"
#include "core/half.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

size_t ScratchBytes(const Job& job) { return Scratch(job, nullptr).bytes; }

// Which keys each row may see; idle rows none.
void FillRanges(const Job& job, const Place& place, const Scratch& scratch) {
  const int64_t rows = job.rows();
  for (Row row = RowAt(job, place, 0); row.index < rows; row.Next(job, place)) {
    const KeyRange range =
        row.index < place.rows ? job.ranges[job.RangeIndex(place.b, row.position, row.head)] : KeyRange();
    SetState(job, row, range.begin, scratch.begin);
    SetState(job, row, range.end, scratch.end);
  }
}

// A sink is one more key of known score and no value: it starts the row's sum.
void StartState(const Job& job, const Place& place, const Scratch& scratch) {
  const AttentionSpec& spec = job.call->spec;
  const int64_t rows = job.rows();
  const int64_t lanes = job.plan.blocks() * StateLanes(job);
  const bool sink = (spec.smooth_softmax || spec.head_sink != nullptr) && place.split == 0;
  std::fill_n(scratch.max, lanes, sink ? 0.0F : kHidden);
  std::fill_n(scratch.sum, lanes, sink ? 1.0F : 0.0F);
  if (sink && spec.head_sink != nullptr)
    for (Row row = RowAt(job, place, 0); row.index < rows; row.Next(job, place))
      SetState(job, row, static_cast<float>(LoadElement(spec.head_sink, spec.head_sink_type, row.head)), scratch.max);
  std::memset(scratch.out, 0, rows * ValueStride(job) * sizeof(float));
}

// The unit's keys: of the union its split's share, in whole tiles.
KeyRange KeysOf(const Job& job, const Place& place, const Scratch& scratch) {
  const KeyRange all = RowsUnion(job, place, scratch);
  const int64_t tiles = (all.end - all.begin + job.plan.key_tile - 1) / job.plan.key_tile;
  const int64_t share = (tiles + job.plan.splits - 1) / job.plan.splits * job.plan.key_tile;
  const int64_t begin = std::min<int64_t>(all.begin + place.split * share, all.end);
  return {static_cast<int32_t>(begin), static_cast<int32_t>(std::min<int64_t>(begin + share, all.end))};
}

// The step between the two kernels: the scores of `count` keys from `begin` on become weights. `rescale` gets the
// factors of the block's earlier sums. Returns whether any factor differs from 1.
template <int R>
bool ScoresToWeights(const Job& job, const Place& place, const Scratch& scratch, int64_t block, const BlockRange& seen,
                     int64_t begin, int64_t count, float* rescale) {
  MaskTile<R>(job, place, scratch, block, seen, begin, count);
  const int64_t lanes = RoundUp(count * R, kLanes);
  const bool round = job.call->value.type == DType::kBF16 && job.plan.value_kernel->products == Products::kDots;
  return round ? UpdateSoftmax<R, true>(scratch.scores, lanes, StateOf<R>(scratch, block), rescale)
               : UpdateSoftmax<R>(scratch.scores, lanes, StateOf<R>(scratch, block), rescale);
}

// The lines that the two kernels prefetch while they work on the keys from `begin` on.
struct Ahead {
  Fetch in_scores, in_weights;
};

// kStream: each kernel its own rows, up to the last that the block sees, `seen_end`. What lies past the unit's own keys
// is the next split's, which is the next unit where one thread runs all. kTileAhead: V during K, then the next tile of
// K, up to the unit's `end`.
Ahead RowsAhead(const Job& job, const Place& place, int64_t begin, int64_t end, int64_t seen_end) {
  const AttentionCall& call = *job.call;
  const bool keys_stream = job.plan.key_reading == Reading::kStream;
  const bool values_stream = job.plan.value_reading == Reading::kStream;
  Ahead ahead;
  const int64_t v_next = begin + job.plan.prefetch_keys;
  if (keys_stream)
    ahead.in_scores =
        FetchOf(call.key, place, begin + CodeOf(job.plan.key_kernel).key_rows_ahead(call.key.head_size), seen_end);
  else if (!values_stream)
    ahead.in_scores = FetchOf(call.value, place, v_next, end);
  if (values_stream)
    ahead.in_weights = FetchOf(call.value, place,
                               begin + CodeOf(job.plan.value_kernel).value_rows_ahead(call.value.head_size), seen_end);
  else if (!keys_stream)
    ahead.in_weights = FetchOf(call.key, place, v_next + job.plan.key_tile, end);
  return ahead;
}

// All tiles of one unit.
template <int R>
void RunTiles(const Job& job, const Place& place, const Scratch& scratch) {
  const AttentionCall& call = *job.call;
  const int64_t value_stride = ValueStride(job);
  const auto weight_tile = CodeOf(job.plan.value_kernel).Narrow(job.plan.value_reading).weight;
  const KeyRange range = KeysOf(job, place, scratch);
  HWY_ALIGN float rescale[kStateLanes<R>];

  for (int64_t block = 0; block < job.plan.blocks(); ++block) PackQueries(job, place, scratch, block);
  for (int64_t tile = range.begin; tile < range.end; tile += job.plan.key_tile) {
    const int64_t tile_end = std::min<int64_t>(tile + job.plan.key_tile, range.end);
    bool first_block = true;
    for (int64_t block = 0; block < job.plan.blocks(); ++block) {
      const BlockRange seen = RangeOf(scratch, kStateLanes<R>, block, std::min<int64_t>(R, place.rows - block * R));
      const int64_t begin = std::max<int64_t>(tile, seen.lo);
      const int64_t count = std::min<int64_t>(tile_end, seen.hi) - begin;
      if (count <= 0) continue;
      // The first block of rows finds the tile cold, and brings what follows.
      const Ahead ahead = first_block ? RowsAhead(job, place, begin, range.end, seen.hi) : Ahead{};
      first_block = false;
      const auto score_tile = ScoreCode(job, scratch, block);
      score_tile(scratch.query + block * R * KeyStride(job), RowsOf(call.key, place, begin), call.key.token_stride,
                 count, call.key.head_size, ahead.in_scores, scratch.factors + block * kStateLanes<R>, scratch.scores);
      const bool moved = ScoresToWeights<R>(job, place, scratch, block, seen, begin, count, rescale);
      weight_tile(scratch.scores, RowsOf(call.value, place, begin), call.value.token_stride, count,
                  call.value.head_size, ahead.in_weights, moved ? rescale : nullptr,
                  scratch.out + block * R * value_stride, value_stride);
    }
  }
  if (call.key_rows_read != nullptr) call.key_rows_read->fetch_add(range.end - range.begin, std::memory_order_relaxed);
}

// Rows of tokens [first, first + tokens) and of `heads` heads from `head` on.
template <typename View>
void AddRows(const View& view, int64_t b, int64_t head, int64_t heads, int64_t first, int64_t tokens, Lines& lines) {
  if (tokens > 0)
    lines.Add(At(view.data, view.type, view.Offset(b, head, first)), BytesOf(view.type, view.head_size), heads,
              BytesOf(view.type, view.head_stride), tokens, BytesOf(view.type, view.token_stride));
}

// The lines that a block prefetches into L2 while its scores are computed: its share of the next tile of K and
// V, [first_key, first_key + keys); in a unit's first tile the next block's queries; in the block's last its output.
Lines LinesAhead(const Job& job, const Place& place, int64_t block, int64_t first_key, int64_t keys, bool first_tile,
                 bool last_tile) {
  const AttentionCall& call = *job.call;
  const int64_t R = job.plan.block_rows;
  const int64_t blocks = job.plan.blocks();
  const int64_t group = job.plan.group;
  Lines lines;
  const int64_t share = first_key + keys * block / blocks;
  const int64_t share_end = first_key + keys * (block + 1) / blocks;
  AddRows(call.key, place.b, place.kv_head, 1, share, share_end - share, lines);
  AddRows(call.value, place.b, place.kv_head, 1, share, share_end - share, lines);
  // Rows of this block and of the next begin and end in these positions.
  const int64_t here = place.PositionOf(job, block * R);
  const int64_t next = place.PositionOf(job, (block + 1) * R);
  const int64_t end = place.PositionOf(job, place.rows);
  const int64_t next_end = std::min(place.PositionOf(job, (block + 2) * R), end);
  if (first_tile) AddRows(call.query, place.b, place.kv_head * group, group, next, next_end - next, lines);
  if (last_tile && job.plan.splits == 1)
    AddRows(call.output, place.b, place.kv_head * group, group, here, std::min(next, end) - here, lines);
  return lines;
}

// All tiles of one unit whose kernels are wide. They fetch while they compute: the memory then works all the time, not
// in bursts that the multipliers wait for.
template <int R>
void RunWideTiles(const Job& job, const Place& place, const Scratch& scratch) {
  const AttentionCall& call = *job.call;
  const TileCode& key_code = CodeOf(job.plan.key_kernel);
  const TileCode& value_code = CodeOf(job.plan.value_kernel);
  const int64_t capacity = PackedKeys(job.plan.key_tile);
  const KeyRange range = KeysOf(job, place, scratch);
  HWY_ALIGN float rescale[kStateLanes<R>];

  for (int64_t tile = range.begin; tile < range.end; tile += job.plan.key_tile) {
    const int64_t tile_end = std::min<int64_t>(tile + job.plan.key_tile, range.end);
    const int64_t next_keys = std::min<int64_t>(job.plan.key_tile, range.end - tile_end);
    key_code.pack_keys(RowsOf(call.key, place, tile), call.key.token_stride, tile_end - tile, call.key.head_size,
                       scratch.keys);
    value_code.pack_values(RowsOf(call.value, place, tile), call.value.token_stride, tile_end - tile,
                           call.value.head_size, capacity, scratch.values);
    for (int64_t block = 0; block < job.plan.blocks(); ++block) {
      if (tile == range.begin) PackQueriesWide(job, place, scratch, block);
      const int64_t rows = std::min<int64_t>(R, place.rows - block * R);
      const BlockRange seen = RangeOf(scratch, kStateLanes<R>, block, rows);
      // A pass begins with a panel; what no row sees of it is hidden.
      const int64_t skipped = std::max<int64_t>(0, seen.lo - tile) / kPassKeys * kPassKeys;
      const int64_t begin = tile + skipped;
      const int64_t count = std::min<int64_t>(tile_end, seen.hi) - begin;
      if (count <= 0) continue;
      Lines lines = LinesAhead(job, place, block, tile_end, next_keys, tile == range.begin,
                               tile_end >= std::min(range.end, seen.hi));
      key_code.score_wide(scratch.query + block * R * KeyStride(job), scratch.keys + skipped * KeyStride(job), count,
                          call.key.head_size, lines, scratch.factors + block * kStateLanes<R>, scratch.scores);
      const bool moved = ScoresToWeights<R>(job, place, scratch, block, seen, begin, count, rescale);
      value_code.weight_wide(scratch.scores, scratch.values, capacity, skipped, count, call.value.head_size, rows,
                             moved ? rescale : nullptr, scratch.out + block * R * ValueStride(job));
    }
  }
  if (call.key_rows_read != nullptr) call.key_rows_read->fetch_add(range.end - range.begin, std::memory_order_relaxed);
}

// One row of sums becomes output: divided by the sum of weights, zeros where no key was seen, scaled where the values
// are codes, rounded once.
void StoreRow(const Job& job, const Place& place, const Row& row, const float* out, float sum) {
  const AttentionCall& call = *job.call;
  const F32 df;
  const Quant& quant = call.value.quant;
  const int64_t Dv = call.value.head_size;
  const bool one_scale = quant.scale != nullptr && !quant.per_channel;
  const Vec inverse = hn::Set(df, (sum == 0.0F ? 0.0F : 1.0F / sum) * (one_scale ? quant.scale[0] : 1.0F));
  const float* const channel_scale = quant.per_channel ? quant.scale + place.kv_head * Dv : nullptr;
  const int64_t offset = call.output.Offset(place.b, row.head, row.position);
  WithAddress(call.output.data, call.output.type, offset, [&](auto* p) HWY_ATTR {
    ForEachVector(Dv, [&](int64_t d, size_t n) HWY_ATTR {
      Vec o = hn::Mul(hn::Load(df, out + d), inverse);
      if (channel_scale != nullptr) o = hn::Mul(o, LoadN(channel_scale + d, n));
      StoreN(o, p + d, n);
    });
  });
}

void RunTiles(const Job& job, const Place& place, const Scratch& scratch) {
  switch (job.plan.block_rows) {
    case 1: return RunTiles<1>(job, place, scratch);
    case 2: return RunTiles<2>(job, place, scratch);
    case 4: return RunTiles<4>(job, place, scratch);
    case 8: return RunTiles<8>(job, place, scratch);
    default: return RunWideTiles<48>(job, place, scratch);
  }
}

void RunScores(const Job& job, int64_t item, void* memory) {
  const Place place(job, item);
  const Scratch scratch(job, memory);
  FillRanges(job, place, scratch);
  StartState(job, place, scratch);
  switch (job.plan.block_rows) {
    case 1: return WriteScores<1>(job, place, scratch);
    case 2: return WriteScores<2>(job, place, scratch);
    case 4: return WriteScores<4>(job, place, scratch);
    default: return WriteScores<8>(job, place, scratch);
  }
}

// Whether the unit's kernels multiply matrices.
bool UsesMatrices(const Plan& plan) {
  return HasMatrixProducts() &&
         (plan.key_kernel->products == Products::kDigits || plan.value_kernel->products == Products::kDigits);
}

void RunUnit(const Job& job, int64_t unit, void* memory) {
  const MatrixRegisters registers(UsesMatrices(job.plan));
  const Place place(job, unit);
  const Scratch scratch(job, memory);
  FillRanges(job, place, scratch);
  StartState(job, place, scratch);
  RunTiles(job, place, scratch);
  const int64_t R = job.plan.block_rows;
  const int64_t value_stride = ValueStride(job);
  const int64_t first_slot = unit * job.rows();
  for (Row row = RowAt(job, place, 0); row.index < place.rows; row.Next(job, place)) {
    const int64_t state = row.State(job);
    const int64_t slot = first_slot + row.index;
    const float* out = scratch.out + row.index * value_stride;
    if (IsWide(job)) {
      float* gathered = job.plan.splits == 1 ? scratch.rows : job.partial_out + slot * value_stride;
      GatherRow(scratch.out + row.block * R * value_stride, R, row.lane, job.call->value.head_size, gathered);
      out = gathered;
    } else if (job.plan.splits > 1) {
      std::memcpy(job.partial_out + slot * value_stride, out, value_stride * sizeof(float));
    }
    if (job.plan.splits == 1) {
      StoreRow(job, place, row, out, scratch.sum[state]);
    } else {
      job.partial_max[slot] = scratch.max[state];
      job.partial_sum[slot] = scratch.sum[state];
    }
  }
}

// Splits are added in their order, whoever finished first. The first split's partial row gathers the sum.
void MergeRow(const Job& job, int64_t item_row) {
  const int64_t item = item_row / job.rows();
  const int64_t row = item_row % job.rows();
  const int64_t unit = item * job.plan.splits;
  const Place place(job, unit);
  if (row >= place.rows) return;
  const F32 df;
  const int64_t value_stride = ValueStride(job);
  const auto slot = [&](int64_t split) HWY_ATTR { return (unit + split) * job.rows() + row; };
  float max = kHidden;
  for (int64_t split = 0; split < job.plan.splits; ++split) max = std::max(max, job.partial_max[slot(split)]);
  const float shift = max == kHidden ? 0.0F : max;
  float sum = 0;
  float* total = job.partial_out + slot(0) * value_stride;
  for (int64_t split = 0; split < job.plan.splits; ++split) {
    const Vec factor = Exp(hn::Set(df, job.partial_max[slot(split)] - shift));
    sum += hn::GetLane(factor) * job.partial_sum[slot(split)];
    const float* part = job.partial_out + slot(split) * value_stride;
    for (int64_t d = 0; d < value_stride; d += kLanes) {
      const Vec scaled = hn::Mul(hn::Load(df, part + d), factor);
      hn::Store(split == 0 ? scaled : hn::Add(hn::Load(df, total + d), scaled), df, total + d);
    }
  }
  StoreRow(job, place, RowAt(job, place, row), total, sum);
}

TargetTraits Traits() {
  return {.fast_dots = [](DType type) { return FastDots(type); }, .reading = &ReadingOf};
}

const char* TargetName() { return hwy::TargetName(HWY_TARGET); }

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvshare {
namespace {
HWY_EXPORT(ScratchBytes);
HWY_EXPORT(ValueStride);
HWY_EXPORT(RunUnit);
HWY_EXPORT(RunScores);
HWY_EXPORT(MergeRow);
HWY_EXPORT(TrimRange);
HWY_EXPORT(AppendRows);
HWY_EXPORT(Traits);
HWY_EXPORT(TargetName);
}  // namespace

UnitCode GetUnitCode() {
  static_cast<void>(LimitSimdTarget());  // Attend reports what is wrong with it
  // First, since it makes the choice: a pointer taken earlier would choose again in every call.
  const char* target = HWY_DYNAMIC_DISPATCH(TargetName)();
  return {.scratch_bytes = HWY_DYNAMIC_POINTER(ScratchBytes),
          .value_stride = HWY_DYNAMIC_POINTER(ValueStride),
          .run = HWY_DYNAMIC_POINTER(RunUnit),
          .scores = HWY_DYNAMIC_POINTER(RunScores),
          .merge = HWY_DYNAMIC_POINTER(MergeRow),
          .trim_range = HWY_DYNAMIC_POINTER(TrimRange),
          .append = HWY_DYNAMIC_POINTER(AppendRows),
          .traits = HWY_DYNAMIC_DISPATCH(Traits)(),
          .target = target};
}
}  // namespace kvshare
#endif
