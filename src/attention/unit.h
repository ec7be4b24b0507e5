// One unit of work of a planned call, and the memory it runs in. The bridge between the plan and the per-target code.
#pragma once

#include <cstdint>

#include "attention/plan.h"
#include "core/sequence_place.h"
#include "kvshare/call.h"

namespace kvshare {

// The facts that all units of one call share. An item's number is ((b * Hkv) + kv_head) * position_tiles + tile, a
// unit's is item * splits + split.
struct Job {
  const AttentionCall* call = nullptr;
  Plan plan;
  const SequencePlace* sequences = nullptr;  // [B]
  const KeyRange* ranges = nullptr;          // [B, S, range_heads]
  const bool* holes = nullptr;               // [B]
  const bool* masked = nullptr;  // as ranges: whether call.mask does anything in the range; null: not computed, every
                                 // row counts as masked
  int64_t range_heads = 1;       // query heads whose ranges may differ: 1, or all where call.mask differs by head
  // Where splits > 1: what a unit leaves for the merge, [units, blocks * R] and [units, blocks * R, ValueStride()].
  float* partial_max = nullptr;
  float* partial_sum = nullptr;
  float* partial_out = nullptr;

  int64_t items() const { return call->query.batch * call->key.heads * plan.position_tiles; }
  int64_t rows() const { return plan.blocks() * plan.block_rows; }
  // Where in `ranges` and `masked` the row of query head `head` at position `s` stands.
  int64_t RangeIndex(int64_t b, int64_t s, int64_t head) const {
    return (b * call->query.tokens + s) * range_heads + (range_heads == 1 ? 0 : head);
  }
};

// A row's range without the keys that call.mask hides at its ends, and whether it hides or biases any that are left.
struct MaskedRange {
  KeyRange range;
  bool masked;
};

// Attend's per-target code; SIMD target chosen at run time.
struct UnitCode {
  size_t (*scratch_bytes)(const Job& job);                      // one unit's scratch
  int64_t (*value_stride)(const Job& job);                      // floats between two rows of partial_out
  void (*run)(const Job& job, int64_t unit, void* scratch);     // one unit; writes the output where splits == 1
  void (*scores)(const Job& job, int64_t item, void* scratch);  // AttentionCall::scores of one item
  void (*merge)(const Job& job, int64_t item_row);              // one row of one item, from its splits' partials
  MaskedRange (*trim_range)(const Job& job, int64_t b, int64_t s, int64_t head, KeyRange range);
  void (*append)(const AppendCall& call, const AppendPlace& place, int64_t b, int64_t head, int64_t begin, int64_t end,
                 float* row);
  TargetTraits traits;
  const char* target;
};
UnitCode GetUnitCode();

}  // namespace kvshare
