// Per-target: where a unit stands in its call, and the memory it works in.
#if defined(KVSHARE_ATTENTION_PLACE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_PLACE_INL_H_
#undef KVSHARE_ATTENTION_PLACE_INL_H_
#else
#define KVSHARE_ATTENTION_PLACE_INL_H_
#endif

#include <algorithm>

#include "attention/digits-inl.h"
#include "attention/load-inl.h"
#include "attention/unit.h"
#include "attention/wide-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

// Cells from one f32 row to the next, and from one packed query row or key to the next (products-inl.h, digits-inl.h).
inline int64_t RowStride(const Job& job) { return RoundUp(job.call->key.head_size, kLanes); }
inline int64_t KeyStride(const Job& job) {
  const int64_t D = job.call->key.head_size;
  switch (job.plan.key_kernel->products) {
    case Products::kDots: return RoundUp((D + 1) / 2, kLanes);
    case Products::kDigits: return std::max(RowStride(job), DigitStride(D));
    default: return RowStride(job);
  }
}
inline int64_t ValueStride(const Job& job) { return RoundUp(job.call->value.head_size, kStrip); }
// Lanes that the state of a block takes. Few rows are repeated until they fill a vector.
inline int64_t StateLanes(const Job& job) { return std::max<int64_t>(job.plan.block_rows, kLanes); }
inline bool IsWide(const Job& job) { return job.plan.block_rows > kNarrowRows; }

constexpr int64_t kQueryRows = 4;  // packed at a time

// The ways to score a block's rows, the fastest first. A block takes the first that is exact enough for all its rows.
enum class Scoring : int32_t { kKernel, kF32, kF64 };

// A unit's scratch, carved from one block. R rows a block of rows, state padded to whole vectors.
struct Scratch {
  float* query;    // [blocks], each as the score kernel wants it; scaled and rotated
  float* factors;  // [blocks][state lanes]: what the rows' sums of products are multiplied by
  float* out;      // [blocks][R][ValueStride], of wide kernels in strips
  float* scores;   // [key_tile + kLanes][R]
  float* max;      // [blocks][state lanes]
  float* sum;      // the same
  int32_t* begin;  // the same: each row's range of keys
  int32_t* end;
  Scoring* scoring;  // [blocks]
  float* rows;       // kQueryRows rows of RowStride, or one of ValueStride
  float* keys;       // a packed tile of K and of V, if the kernels are wide
  float* values;
  size_t bytes;

  // With null memory it only measures.
  Scratch(const Job& job, void* memory) {
    const int64_t R = job.plan.block_rows;
    const int64_t blocks = job.plan.blocks();
    const int64_t state = blocks * StateLanes(job);
    size_t offset = 0;
    const auto take = [&](int64_t count) HWY_ATTR {
      std::byte* at = memory == nullptr ? nullptr : static_cast<std::byte*>(memory) + offset;
      float* p = reinterpret_cast<float*>(at);
      offset += RoundUp(count * sizeof(float), 64);
      return p;
    };
    query = take(blocks * R * KeyStride(job));
    factors = take(state);
    out = take(blocks * R * ValueStride(job));
    scores = take((job.plan.key_tile + static_cast<int64_t>(kLanes)) * R);
    max = take(state);
    sum = take(state);
    begin = reinterpret_cast<int32_t*>(take(state));
    end = reinterpret_cast<int32_t*>(take(state));
    scoring = reinterpret_cast<Scoring*>(take(blocks));
    rows = take(std::max(kQueryRows * RowStride(job), ValueStride(job)));
    const int64_t packed = IsWide(job) ? PackedKeys(job.plan.key_tile) : 0;
    keys = take(packed * KeyStride(job));
    values = take(packed * ValueStride(job));
    bytes = offset;
  }
};

// Where a unit stands in its call.
struct Place {
  int64_t b, kv_head, split;
  int64_t first_position;  // s of row 0
  int64_t rows;            // (position, head) rows that exist; later ones of the last block are idle

  Place(const Job& job, int64_t unit) {
    const int64_t item = unit / job.plan.splits;
    split = unit % job.plan.splits;
    const int64_t tile = item % job.plan.position_tiles;
    kv_head = item / job.plan.position_tiles % job.call->key.heads;
    b = item / job.plan.position_tiles / job.call->key.heads;
    first_position = tile * job.plan.positions;
    rows = std::min(job.plan.positions, job.call->query.tokens - first_position) * job.plan.group;
  }
  int64_t PositionOf(const Job& job, int64_t row) const { return first_position + row / job.plan.group; }
  int64_t HeadOf(const Job& job, int64_t row) const { return kv_head * job.plan.group + row % job.plan.group; }
};

// A row of a unit. Next() counts on: the divisions of RowAt would take as long as a short row's products.
struct Row {
  int64_t index;     // in the unit; idle from place.rows on
  int64_t position;  // s
  int64_t head;      // of the query
  int64_t block;
  int64_t lane;  // its first one in the state of its block

  void Next(const Job& job, const Place& place) {
    ++index;
    if (++head == (place.kv_head + 1) * job.plan.group) {
      head = place.kv_head * job.plan.group;
      ++position;
    }
    if (++lane == job.plan.block_rows) {
      lane = 0;
      ++block;
    }
  }
  int64_t State(const Job& job) const { return block * StateLanes(job) + lane; }
};

inline Row RowAt(const Job& job, const Place& place, int64_t index) {
  const int64_t R = job.plan.block_rows;
  return {index, place.PositionOf(job, index), place.HeadOf(job, index), index / R, index % R};
}

// Sets a row's entry of `state` in each of its lanes.
template <typename T>
inline void SetState(const Job& job, const Row& row, T value, T* state) {
  const int64_t lanes = StateLanes(job);
  for (int64_t lane = row.lane; lane < lanes; lane += job.plan.block_rows) state[row.block * lanes + lane] = value;
}

// The keys that a block's work is about: [lo, hi) holds every key that some row of the block sees, [all_lo, all_hi) the
// keys that all of its rows see.
struct BlockRange {
  int32_t lo = INT32_MAX, hi = 0, all_lo = 0, all_hi = INT32_MAX;
};

inline BlockRange RangeOf(const Scratch& scratch, int64_t state_lanes, int64_t block, int64_t rows) {
  BlockRange range;
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t begin = scratch.begin[block * state_lanes + r];
    const int32_t end = scratch.end[block * state_lanes + r];
    if (begin < end) {
      range.lo = std::min(range.lo, begin);
      range.hi = std::max(range.hi, end);
    }
    range.all_lo = std::max(range.all_lo, begin);
    range.all_hi = std::min(range.all_hi, end);
  }
  return range;
}

// The union of the unit's rows' ranges.
inline KeyRange RowsUnion(const Job& job, const Place& place, const Scratch& scratch) {
  const int64_t R = job.plan.block_rows;
  KeyRange all{INT32_MAX, 0};
  for (int64_t first = 0; first < place.rows; first += R) {
    const BlockRange block = RangeOf(scratch, StateLanes(job), first / R, std::min(R, place.rows - first));
    all.begin = std::min(all.begin, block.lo);
    all.end = std::max(all.end, block.hi);
  }
  return all.begin < all.end ? all : KeyRange{};
}

// The unit's K or V head, from row `first` on.
inline const void* RowsOf(const HeadsView& view, const Place& place, int64_t first) {
  return At(view.data, view.type, view.Offset(place.b, place.kv_head, first));
}
inline Fetch FetchOf(const HeadsView& view, const Place& place, int64_t first, int64_t end) {
  if (first >= end) return {};
  return {static_cast<const char*>(RowsOf(view, place, first)), BytesOf(view.type, view.token_stride), end - first};
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
