// The work of one block of a tile kernel.
#pragma once

#include "cuda/kernel_table.h"
#include "cuda/softmax-inl.h"

namespace kvshare::cuda {

// One block: rows [row, row + kRows) of one KV head, and the keys of one split of what they see.
struct TileBlock {
  int split, kv_head, b, row, rows, group, tile;
  Place place;
  Range keys;  // of the split

  template <typename Shape>
  GPU_FN static TileBlock Of(const DeviceAttention& call, const AttendGrid& grid, int tile, int split) {
    TileBlock mine;
    mine.tile = tile;
    mine.split = split;
    mine.row = mine.tile % grid.row_tiles * Shape::kRows;
    mine.kv_head = mine.tile / grid.row_tiles % call.Hkv;
    mine.b = mine.tile / grid.row_tiles / call.Hkv;
    mine.group = call.Hq / call.Hkv;
    mine.rows = mine.group * call.S;
    mine.place = PlaceOf(call, mine.b);
    const int last = gpu::Min(mine.row + Shape::kRows, mine.rows) - 1;
    const Range all = TileRange(call, mine.place, mine.group, mine.row, last);
    const int tiles = (all.end - all.begin + Shape::kKeys - 1) / Shape::kKeys;
    const int share = (tiles + grid.splits - 1) / grid.splits * Shape::kKeys;
    mine.keys.begin = gpu::Min(all.begin + mine.split * share, all.end);
    mine.keys.end = gpu::Min(mine.keys.begin + share, all.end);
    return mine;
  }
  GPU_FN int Head(int r) const { return kv_head * group + r % group; }
  GPU_FN int Token(int r) const { return r / group; }
  // How rows count `key`; below 0 where the key mask hides it, or no row of the block sees it.
  GPU_FN int CountOf(const DeviceAttention& call, int key) const {
    return key < keys.end ? cuda::CountOf(call, b, key) : -1;
  }
  // The counts that row r sees; none past the last row.
  GPU_FN Range RangeOf(const DeviceAttention& call, int r) const {
    return r < rows ? RowRange(call, place, Token(r)) : Range{0, 0};
  }
  // The score of row r, which sees `range`, and of a key, which it counts as `count`: from their dot product, in units
  // of log2(e).
  GPU_FN float Score(const DeviceAttention& call, const ScoreScale& scaled, const Range& range, float dot, int r,
                     int key, int count) const {
    if (count < range.begin || count >= range.end) return -gpu::Infinity();
    const float score = scaled(dot);
    if (call.mask.data == nullptr) return score;
    return score + kLog2E * MaskAt(call, b, NumberOf(call.first_column, b), Head(r), Token(r), key);
  }
};

}  // namespace kvshare::cuda
