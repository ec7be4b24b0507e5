#include "attention/plan.h"

#include <algorithm>
#include <numeric>

namespace kvshare {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Clamps a huge window: what it sees is the same, and a position plus or minus the window cannot overflow.
int64_t Reach(int64_t window) { return std::min(window, int64_t{1} << 40); }

template <typename Element>
void RangesFromMask(const AttentionCall& call, const Element* mask, KeyRange* ranges, bool* holes) {
  const int64_t S = call.query.tokens;
  const int64_t T = call.key.tokens;
  const AttentionSpec& spec = call.spec;
  *holes = false;
  // Two pointers walk with the row: ones in [begin, end) never need a prefix sum over all of T.
  int64_t first = 0;  // the first kept key: left padding is outside every range
  while (first < T && mask[first] == 0) ++first;
  int64_t begin = first;
  int64_t end = first;
  int64_t kept_end = first;  // one past the last kept key before end: trailing padding is outside too
  int64_t ones = 0;          // kept keys in [begin, end)
  const bool causal = spec.window_right != kUnlimited;
  for (int64_t s = 0; s < S; ++s) {
    const int64_t column = T - S + s;
    // Keys up to the row's own column are at or before its position; window_right more kept ones may follow.
    int64_t want_end = causal ? column + 1 : T;
    if (causal)
      for (int64_t after = 0; want_end < T && after < spec.window_right; ++want_end)
        after += mask[want_end] != 0 ? 1 : 0;
    if (s == 0 && spec.window_left != kUnlimited && causal && spec.window_right == 0) {
      // Decode and first rows of a chunk: walk back from the row instead of forward from the start.
      end = std::max(want_end, first);
      begin = end;
      while (begin > first && (ones <= spec.window_left)) {
        --begin;
        if (mask[begin] == 0) continue;
        if (ones++ == 0) kept_end = begin + 1;
      }
    }
    for (; end < want_end; ++end) {
      if (mask[end] == 0) continue;
      ++ones;
      kept_end = end + 1;
    }
    if (spec.window_left != kUnlimited) {
      // pos(q) - pos(k) <= window_left: of the kept keys up to the row's own column, the last window_left + 1.
      int64_t later = 0;
      for (int64_t j = column + 1; j < end; ++j) later += mask[j] != 0 ? 1 : 0;
      while (begin < end && (ones - later > Reach(spec.window_left) + 1 || mask[begin] == 0)) {
        ones -= mask[begin] != 0 ? 1 : 0;
        ++begin;
      }
    }
    const int64_t last = std::max(begin, kept_end);
    ranges[s] = {static_cast<int32_t>(begin), static_cast<int32_t>(last)};
    if (ones != last - begin) *holes = true;
  }
}

void RangesFromPositions(const AttentionCall& call, const SequencePlace& sequence, KeyRange* ranges) {
  const AttentionSpec& spec = call.spec;
  const int64_t length = sequence.length;
  const int64_t tokens = sequence.query_length;
  for (int64_t s = tokens; s < call.query.tokens; ++s) ranges[s] = {};
  for (int64_t s = 0; s < tokens; ++s) {
    const int64_t position = sequence.query_position + s;
    int64_t begin =
        spec.window_left == kUnlimited ? 0 : std::clamp<int64_t>(position - Reach(spec.window_left), 0, length);
    const int64_t end = spec.window_right == kUnlimited
                            ? length
                            : std::clamp<int64_t>(position + Reach(spec.window_right) + 1, 0, length);
    begin = std::min(begin, end);
    ranges[s] = {static_cast<int32_t>(begin), static_cast<int32_t>(end)};
  }
}

// Whether dot products may replace FMA. Those of bf16 round queries and weights to bf16, which only callers whose
// queries are bf16 expect. Those of bytes serve decode and short chunks; a prompt multiplies in f32.
bool MayUseDots(const AttentionCall& call, const HeadsView& view, int64_t rows, bool (*fast_dots)(DType)) {
  if (view.type == DType::kBF16 && call.query.type != DType::kBF16) return false;
  if (view.type != DType::kBF16 && (rows >= kWideFrom || view.head_size > kMostDigitChannels)) return false;
  return fast_dots(view.type);
}

// Bytes that one token has in K and V of one head.
int64_t TokenBytes(const AttentionCall& call) {
  return BytesOf(call.key.type, call.key.head_size) + BytesOf(call.value.type, call.value.head_size);
}

// The least keys of a split for narrow kernels: the shorter rows of K and V are, the more keys it needs.
int64_t KeysPerSplit(const AttentionCall& call) {
  return std::max(kKeysPerSplit, kBytesPerSplit / std::max<int64_t>(1, TokenBytes(call)));
}

// How the kernels read, and so how many keys a tile has; needs the rest of the plan.
void SetReadings(const AttentionCall& call, const TargetTraits& target, int64_t most_visible, Plan& plan) {
  const int64_t bytes = call.query.batch * call.key.heads * most_visible * TokenBytes(call) / plan.blocks();
  plan.key_reading = target.reading(plan.key_kernel, call.key.head_size, bytes);
  plan.value_reading = target.reading(plan.value_kernel, call.value.head_size, bytes);
  const Reading reading = plan.key_reading == plan.value_reading ? plan.key_reading : Reading::kTileAhead;
  if (plan.block_rows > kNarrowRows) {
    plan.key_tile = kWideKeyTile;
  } else if (plan.blocks() > 1) {
    plan.key_tile = kChunkKeyTile;
  } else if (reading == Reading::kSpread) {
    plan.key_tile = kSpreadKeyTile * (BytesOf(call.key.type, call.key.head_size) <= kSpreadShortRow ? 2 : 1);
  } else if (reading == Reading::kStream) {
    // Not larger than a split, whose shares are whole tiles.
    const int64_t share = CeilDiv(std::max<int64_t>(1, most_visible), plan.splits);
    plan.key_tile = std::min(kStreamKeyTile, CeilDiv(share, kStreamKeyStep) * kStreamKeyStep);
  } else {
    const bool short_head = call.key.head_size <= kShortHead;
    const bool codes = IsQuantized(call.key.type);
    plan.key_tile = (short_head ? kShortHeadKeyTile : kLongHeadKeyTile) * (codes ? kCodeKeys : 1);
    plan.prefetch_keys = short_head && !codes ? plan.key_tile : 0;
  }
}

}  // namespace

void FillKeyRanges(const AttentionCall& call, const SequencePlace* sequences, KeyRange* ranges, bool* holes) {
  for (int64_t b = 0; b < call.query.batch; ++b) {
    KeyRange* row = ranges + b * call.query.tokens;
    holes[b] = false;
    if (!call.key_mask) {
      RangesFromPositions(call, sequences[b], row);
      continue;
    }
    const int64_t offset = b * call.key_mask.batch_stride;
    switch (call.key_mask.type) {
      case DType::kI64:
        RangesFromMask(call, static_cast<const int64_t*>(call.key_mask.data) + offset, row, holes + b);
        break;
      case DType::kI32:
        RangesFromMask(call, static_cast<const int32_t*>(call.key_mask.data) + offset, row, holes + b);
        break;
      default: RangesFromMask(call, static_cast<const uint8_t*>(call.key_mask.data) + offset, row, holes + b); break;
    }
  }
}

Plan PlanScores(const AttentionCall& call) {
  Plan plan;
  const int64_t S = call.query.tokens;
  plan.group = call.query.heads / call.key.heads;
  const int64_t rows = std::min<int64_t>(S * plan.group, kNarrowRows);
  const auto fits = [&](const TileKernelRow& row) {
    return row.type == call.key.type && row.products == Products::kFma && row.rows >= rows;
  };
  plan.key_kernel = plan.value_kernel = &*std::ranges::find_if(TileKernels(), fits);
  plan.block_rows = plan.key_kernel->rows;
  plan.positions = std::clamp<int64_t>(kRowsPerUnit / plan.group, 1, S);
  plan.position_tiles = CeilDiv(S, plan.positions);
  return plan;
}

Result<Plan> MakePlan(const AttentionCall& call, std::span<const KeyRange> ranges, const TargetTraits& target) {
  Plan plan;
  const int64_t S = call.query.tokens;
  plan.group = call.query.heads / call.key.heads;
  int64_t most_visible = 0;
  for (const KeyRange& range : ranges) most_visible = std::max<int64_t>(most_visible, range.end - range.begin);
  const bool few_keys = most_visible <= kFewKeys;
  const auto choose = [&](const HeadsView& view) {
    const int64_t rows = S * plan.group;
    return ChooseTileKernel(view.type, few_keys ? std::min<int64_t>(rows, kNarrowRows) : rows,
                            MayUseDots(call, view, rows, target.fast_dots));
  };
  KVSHARE_ASSIGN_OR_RETURN(plan.key_kernel, choose(call.key));
  plan.value_kernel = plan.key_kernel;
  if (call.value.type != call.key.type) {
    KVSHARE_ASSIGN_OR_RETURN(plan.value_kernel, choose(call.value));
  }
  plan.block_rows = plan.key_kernel->rows;

  const bool wide = plan.block_rows > kNarrowRows;
  const int64_t row_bytes = (call.key.head_size + call.value.head_size) * static_cast<int64_t>(sizeof(float));
  int64_t most_rows = kRowsPerUnit;
  if (few_keys) {
    most_rows = std::clamp<int64_t>(kFewKeysUnitBytes / std::max<int64_t>(1, row_bytes), kNarrowRows, kRowsPerUnit);
  } else if (wide) {
    const int64_t rows = call.query.batch * call.query.heads * S;
    const int64_t most_blocks = std::min(kWideUnitBytes / (row_bytes * plan.block_rows),
                                         std::max(CeilDiv(rows, kWideUnits * plan.block_rows), kWideBlocks));
    most_rows = std::max<int64_t>(most_blocks, 1) * plan.block_rows;
  }
  // Divide S evenly, so that the last unit is not tiny; round up to whole blocks of R rows.
  const int64_t step = std::min(S, plan.block_rows / std::gcd(plan.block_rows, plan.group));
  plan.position_tiles = CeilDiv(S, std::max<int64_t>(1, most_rows / plan.group));
  plan.positions = CeilDiv(CeilDiv(S, plan.position_tiles), step) * step;
  plan.position_tiles = CeilDiv(S, plan.positions);

  const int64_t items = call.query.batch * call.key.heads * plan.position_tiles;
  const int64_t split_keys = wide ? kWideKeysPerSplit : KeysPerSplit(call);
  plan.splits = std::clamp(kEnoughUnits / items, int64_t{1}, std::max<int64_t>(1, CeilDiv(most_visible, split_keys)));
  SetReadings(call, target, most_visible, plan);
  return plan;
}

}  // namespace kvshare
