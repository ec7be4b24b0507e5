// Decode and short chunks. A block takes a tile of rows (token, head of the group) and the keys of a split.
//
// Every warp owns 16 keys at a time and a ring of its own, so the loop has no barrier of the block. Where the sums of
// all rows fill no warp's registers, a team of warps shares a ring and each has its part of the rows. What a warp does
// with a tile of K or V is its Products: tensor cores (decode_tensor-inl.h) or f32 (decode_fma-inl.h).
#pragma once

#include "cuda/block-inl.h"
#include "cuda/codes-inl.h"
#include "cuda/decode_fma-inl.h"
#include "cuda/decode_tensor-inl.h"
#include "cuda/element-inl.h"
#include "cuda/softmax-inl.h"
#include "cuda/tile-inl.h"

namespace kvshare::cuda {

// kD: of K and V, or more. kTiles: of eight rows. kTeam: warps that share a ring. kStages: pairs of tiles that are
// under way in a ring. kQueryInRegisters: else in shared memory.
template <typename Element_, typename Code_, int kD_, int kTiles_, int kWarps_, int kTeam_, int kStages_,
          bool kQueryInRegisters_>
struct DecodeShape {
  using Element = Element_;  // of query and output
  using Code = Code_;        // of K and V
  static constexpr bool kTensor = kBitsOf<Element> == 16;
  static constexpr int kD = kD_;
  static constexpr int kTiles = kTiles_;
  static constexpr int kWarps = kWarps_;
  static constexpr int kTeam = kTeam_;
  static constexpr int kStages = kStages_;
  static constexpr bool kQueryInRegisters = kQueryInRegisters_;
  static constexpr int kWarpTiles = kTiles / kTeam;
  static constexpr int kTeams = kWarps / kTeam;
  // Groups of copies that are younger than the K, or the V, that is waited for: K and V take turns.
  static constexpr int kNewerThanKey = 2 * kStages - 1;
  static constexpr int kNewerThanValue = 2 * kStages - 1;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kRows = kTiles * 8;
  static constexpr int kKeys = 16;                        // of a tile
  static constexpr int kUnits = kD * kBitsOf<Code> / 16;  // of 16 bits, in a row of a tile
  static constexpr int kTile = kKeys * TileRow(kUnits);   // units
  static constexpr int kSumRow = kD + 4;                  // floats, in the merge of the warps
  static constexpr int kRingBytes = kTeams * kStages * 2 * kTile * 2;
  static constexpr int kMergeBytes = kTeams * kRows * (kSumRow + 2) * 4;  // lies in place of the rings
  static constexpr int kLoopBytes = kRingBytes > kMergeBytes ? kRingBytes : kMergeBytes;
  using Products = std::conditional_t<kTensor, TensorProducts<DecodeShape>, FmaProducts<DecodeShape>>;
  static constexpr int kShared = kLoopBytes + Products::SharedBytes();
  static_assert(kTiles % kTeam == 0 && kWarps % kTeam == 0 && kTeams <= 15);
};

// A barrier for the warps that share a ring.
template <typename Shape>
GPU_FN void SyncRing() {
  if constexpr (Shape::kTeam == 1)
    gpu::SyncWarp();
  else
    gpu::SyncTeam(gpu::Thread() / 32 / Shape::kTeam, Shape::kTeam);
}

// The first row of this warp in the block's tile of rows.
template <typename Shape>
GPU_FN int FirstRow() {
  return gpu::Thread() / 32 % Shape::kTeam * Shape::kWarpTiles * 8;
}

// The softmax of a warp's rows. Element e belongs to column lane % 4 * 2 + e of its tile of rows.
template <typename Shape>
struct DecodeSoftmax {
  float maximum[Shape::kWarpTiles][2];
  float weights[Shape::kWarpTiles][2] = {};  // this lane's part

  // Tile n's scores become weights; what was summed before fades.
  GPU_FN void Weigh(float (&x)[4], float (&fade)[2], int n) {
    GPU_UNROLL
    for (int e = 0; e < 2; ++e) {
      float top = gpu::Max(maximum[n][e], gpu::Max(x[e], x[e + 2]));
      for (int mask = 4; mask < 32; mask *= 2) top = gpu::Max(top, gpu::ShuffleXor(top, mask));
      const float base = BaseOf(top);
      fade[e] = gpu::Exp2(maximum[n][e] - base);
      maximum[n][e] = top;
      x[e] = gpu::Exp2(x[e] - base);
      x[e + 2] = gpu::Exp2(x[e + 2] - base);
      weights[n][e] = weights[n][e] * fade[e] + x[e] + x[e + 2];
    }
  }
};

// The sums that a warp keeps of the keys that it has seen.
template <typename Shape>
struct DecodeState {
  typename Shape::Products products;
  DecodeSoftmax<Shape> softmax;

  GPU_FN DecodeState(const DeviceAttention& call, const TileBlock& mine, const KeyScale& scale)
      : products(call, mine, scale) {}
};

// The ring of this warp's team, and the keys that go through it: tiles team, team + kTeams, ... of the split.
template <typename Shape>
struct DecodeRing {
  const DeviceAttention& call;
  const TileBlock& mine;
  int team, thread, count;
  uint16_t* tiles;

  GPU_FN DecodeRing(const DeviceAttention& a, const TileBlock& block)
      : call(a),
        mine(block),
        team(gpu::Thread() / 32 / Shape::kTeam),
        thread(gpu::Thread() % (32 * Shape::kTeam)),
        tiles(reinterpret_cast<uint16_t*>(gpu::Shared()) + team * Shape::kStages * 2 * Shape::kTile) {
    const int all = (mine.keys.end - mine.keys.begin + Shape::kKeys - 1) / Shape::kKeys;
    count = (gpu::Max(all - team, 0) + Shape::kTeams - 1) / Shape::kTeams;
  }
  GPU_FN int FirstKey(int i) const { return mine.keys.begin + (team + i * Shape::kTeams) * Shape::kKeys; }
  GPU_FN uint16_t* At(int i, bool value) const {
    return tiles + (i % Shape::kStages * 2 + (value ? 1 : 0)) * Shape::kTile;
  }
  GPU_FN void Copy(int i, bool value) const {
    if (i < count) {
      const DeviceHeads& heads = value ? call.value : call.key;
      const int64_t first =
          mine.b * heads.batch_stride + mine.kv_head * heads.head_stride + FirstKey(i) * heads.token_stride;
      CopyTile<Shape::kUnits, Shape::kKeys, 32 * Shape::kTeam>(
          At(i, value), static_cast<const uint16_t*>(heads.data) + Units(first), Units(heads.token_stride),
          mine.keys.end - FirstKey(i), static_cast<int>(Units(call.D)), thread);
    }
    gpu::CopyCommit();
  }
  GPU_FN static int64_t Units(int64_t elements) {
    constexpr int kBits = kBitsOf<typename Shape::Code>;
    return kBits > 16 ? elements * (kBits / 16) : elements / (16 / kBits);
  }
};

template <typename Shape>
GPU_FN void DecodeLoop(const DeviceAttention& call, const TileBlock& mine, const DecodeRing<Shape>& ring,
                       const KeyScale& scale, DecodeState<Shape>& state) {
  const int lane = gpu::Thread() % 32, first_row = mine.row + FirstRow<Shape>();
  Range range[Shape::kWarpTiles][2];
  GPU_UNROLL
  for (int n = 0; n < Shape::kWarpTiles; ++n) {
    GPU_UNROLL
    for (int e = 0; e < 2; ++e) {
      range[n][e] = mine.RangeOf(call, first_row + n * 8 + lane % 4 * 2 + e);
      state.softmax.maximum[n][e] = -gpu::Infinity();
    }
  }
  ScoreScale scaled(call);
  scaled.factor *= scale.factor;
  for (int i = 0; i < ring.count; ++i) {
    gpu::CopyWait<Shape::kNewerThanKey>();
    // All lanes' parts of K are here.
    SyncRing<Shape>();
    float scores[Shape::kWarpTiles][4] = {};
    state.products.Scores(scores, ring.At(i, false));
    // No lane reads K any more.
    SyncRing<Shape>();
    ring.Copy(i + Shape::kStages, false);
    const int key = ring.FirstKey(i) + lane / 4;  // and key + 8
    const int count[2] = {mine.CountOf(call, key), mine.CountOf(call, key + 8)};
    uint32_t packed[Shape::kWarpTiles][2];
    GPU_UNROLL
    for (int n = 0; n < Shape::kWarpTiles; ++n) {
      float x[4], fade[2];
      GPU_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int r = first_row + n * 8 + lane % 4 * 2 + e % 2;
        x[e] = mine.Score(call, scaled, range[n][e % 2], scores[n][e], r, key + e / 2 * 8, count[e / 2]);
      }
      state.softmax.Weigh(x, fade, n);
      state.products.Weigh(packed, x, fade, n);
    }
    gpu::CopyWait<Shape::kNewerThanValue>();
    // All lanes' parts of V are here.
    SyncRing<Shape>();
    state.products.Sum(packed, ring.At(i, true));
    // No lane reads V any more.
    SyncRing<Shape>();
    ring.Copy(i + Shape::kStages, true);
  }
}

// The teams' sums, one beside the other in shared memory, in place of the rings.
template <typename Shape>
struct DecodeMerge {
  float* sums;     // [kTeams, kRows, kSumRow]
  float* softmax;  // [kTeams, kRows, 2]

  GPU_FN DecodeMerge()
      : sums(reinterpret_cast<float*>(gpu::Shared())), softmax(sums + Shape::kTeams * Shape::kRows * Shape::kSumRow) {}

  GPU_FN void Put(const DecodeState<Shape>& mine) const {
    const int lane = gpu::Thread() % 32;
    const int first = gpu::Thread() / 32 / Shape::kTeam * Shape::kRows + FirstRow<Shape>();
    GPU_UNROLL
    for (int n = 0; n < Shape::kWarpTiles; ++n) {
      GPU_UNROLL
      for (int e = 0; e < 2; ++e) {
        float weights = mine.softmax.weights[n][e];
        for (int mask = 4; mask < 32; mask *= 2) weights += gpu::ShuffleXor(weights, mask);
        const int r = first + n * 8 + lane % 4 * 2 + e;
        if (lane < 4) {
          softmax[2 * r] = mine.softmax.maximum[n][e];
          softmax[2 * r + 1] = weights;
        }
      }
    }
    mine.products.ForEachSum([&](int row, int d, float sum) { sums[(first + row) * Shape::kSumRow + d] = sum; });
  }
  // The weighted sums of all teams for row r and channels d, d + 1, relative to the maximum that is returned.
  GPU_FN float Get(int r, int d, float (&two)[2], float* weights) const {
    float top = -gpu::Infinity();
    GPU_UNROLL
    for (int team = 0; team < Shape::kTeams; ++team) top = gpu::Max(top, softmax[2 * (team * Shape::kRows + r)]);
    GPU_UNROLL
    for (int team = 0; team < Shape::kTeams; ++team) {
      const int place = team * Shape::kRows + r;
      const float fade = gpu::Exp2(softmax[2 * place] - BaseOf(top));
      *weights += fade * softmax[2 * place + 1];
      two[0] += fade * sums[place * Shape::kSumRow + d];
      two[1] += fade * sums[place * Shape::kSumRow + d + 1];
    }
    return top;
  }
};

// Channels d and d + 1 of the call's row r.
template <typename Element>
GPU_FN void StoreTwo(const DeviceAttention& call, const TileBlock& mine, int r, int d, float first, float second) {
  const DeviceOutput& to = call.output;
  const int64_t at = mine.b * to.batch_stride + mine.Head(r) * to.head_stride + mine.Token(r) * to.token_stride + d;
  if constexpr (kBitsOf<Element> == 16) {
    *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(to.data) + at) = gpu::Pack2<Element>(first, second);
  } else {
    static_cast<float*>(to.data)[at] = first;
    static_cast<float*>(to.data)[at + 1] = second;
  }
}

template <typename Shape>
GPU_KERNEL(Shape::kThreads, 1)
DecodeWarpKernel(GPU_PARAM DeviceAttention call, GPU_PARAM AttendGrid grid) {
  const TileBlock mine =
      TileBlock::Of<Shape>(call, grid, static_cast<int>(gpu::Block().x), static_cast<int>(gpu::Block().y));
  {
    const DecodeRing<Shape> ring(call, mine);
    GPU_UNROLL
    for (int i = 0; i < Shape::kStages; ++i) {
      ring.Copy(i, false);
      ring.Copy(i, true);
    }
    const KeyScale scale(call, mine.kv_head);
    DecodeState<Shape> state(call, mine, scale);
    DecodeLoop<Shape>(call, mine, ring, scale, state);
    // The rings become the merge's memory.
    gpu::SyncThreads();
    DecodeMerge<Shape>().Put(state);
  }
  // All warps' sums are here.
  gpu::SyncThreads();
  const DecodeMerge<Shape> merge;
  const DeviceHeads& value = call.value;
  for (int i = gpu::Thread(); i < Shape::kRows * (Shape::kD / 2); i += Shape::kThreads) {
    const int n = i / (Shape::kD / 2), d = i % (Shape::kD / 2) * 2, r = mine.row + n;
    float two[2] = {}, weights = 0;
    const float top = merge.Get(n, d, two, &weights);
    GPU_UNROLL
    for (int e = 0; e < 2; ++e)
      if (d + e < call.D) two[e] *= QuantScale(value.quant_scale, value.quant_per_channel, mine.kv_head, call.D, d + e);
    if (grid.splits == 1) {
      if (r >= mine.rows || d >= call.D) continue;
      const float factor = OutputFactor(call, mine.Head(r), top, weights);
      StoreTwo<typename Shape::Element>(call, mine, r, d, two[0] * factor, two[1] * factor);
      continue;
    }
    const int64_t slot = (static_cast<int64_t>(mine.tile) * grid.splits + mine.split) * Shape::kRows + n;
    grid.partial_sums[slot * Shape::kD + d] = two[0];
    grid.partial_sums[slot * Shape::kD + d + 1] = two[1];
    if (d == 0) {
      grid.partial_softmax[2 * slot] = top;
      grid.partial_softmax[2 * slot + 1] = weights;
    }
  }
}

}  // namespace kvshare::cuda
