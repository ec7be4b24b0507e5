// From shapes, lengths and windows to units of work: which rows, which keys, how large a tile. Depends on the call, the
// SIMD target and the CPU alone, never on threads, so that the same input gives the same bits at any number of them.
#pragma once

#include <cstdint>
#include <span>

#include "attention/kernel_table.h"
#include "attention/tuning.h"
#include "core/sequence_place.h"
#include "kvshare/call.h"

namespace kvshare {

// Keys [begin, end) that a query row may see; holes of a key mask inside are hidden one by one.
struct KeyRange {
  int32_t begin = 0;
  int32_t end = 0;
};

struct Plan {
  const TileKernelRow* key_kernel = nullptr;    // scores
  const TileKernelRow* value_kernel = nullptr;  // weighted sum; same R
  Reading key_reading = Reading::kTileAhead;    // of narrow kernels
  Reading value_reading = Reading::kTileAhead;  // the same
  int64_t group = 1;                            // G
  int64_t block_rows = 1;                       // R
  int64_t positions = 1;                        // query positions a unit takes
  int64_t position_tiles = 1;                   // units along S
  int64_t splits = 1;                           // units along the visible keys of one item
  int64_t key_tile = 64;                        // keys a tile
  int64_t prefetch_keys = 0;                    // fetched into L2 while K is read: V from this many keys ahead on

  int64_t blocks() const { return (positions * group + block_rows - 1) / block_rows; }
};

// What the plan asks of the SIMD target.
struct TargetTraits {
  bool (*fast_dots)(DType);  // whether dot products of K/V of that type are faster than f32 FMA
  // How that kernel reads K or V, if it is narrow, where a block of rows needs `bytes` of both.
  Reading (*reading)(const TileKernelRow*, int64_t head_size, int64_t bytes);
};

// Fills `ranges` [B, S] and `holes` [B] (whether a key mask has zeros inside some row's range); `sequences` is [B].
void FillKeyRanges(const AttentionCall& call, const SequencePlace* sequences, KeyRange* ranges, bool* holes);

// The plan of the pass that shows scores: narrow kernels, which score keys where they lie, and no splits.
Plan PlanScores(const AttentionCall& call);

// `ranges`: those of all rows, in any order.
Result<Plan> MakePlan(const AttentionCall& call, std::span<const KeyRange> ranges, const TargetTraits& target);

}  // namespace kvshare
