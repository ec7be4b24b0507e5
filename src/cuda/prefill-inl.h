// Prefill of 16-bit tensors: 64 rows (token, head of the group) a block are the rows of the tensor cores' tile.
//
//   S [16 rows x keys] = Q K^T          O [16 rows x D / parts] += P V          a warp
//
// K and V have one tile each: V arrives while K is multiplied, and the next K while V is. Where O of all channels does
// not fit a warp's registers (D 512), `parts` warps share 16 rows: each computes the scores of its part of the keys,
// reads the others' from shared memory, and sums its part of the channels.
#pragma once

#include "cuda/block-inl.h"
#include "cuda/tile-inl.h"

namespace kvshare::cuda {

template <typename Element_, int kD_, int kKeys_, int kParts_>
struct PrefillShape {
  using Element = Element_;
  using Code = Element_;
  static constexpr int kD = kD_;
  static constexpr int kKeys = kKeys_;  // of a tile
  static constexpr int kParts = kParts_;
  static constexpr int kRows = 64;
  static constexpr int kWarps = kRows / 16 * kParts;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kScored = kKeys / kParts;          // keys whose scores a warp computes
  static constexpr int kChannels = kD / kParts;           // that a warp sums
  static constexpr int kScoreRow = kKeys + 8;             // floats
  static constexpr int kTile = kKeys * TileRow(kD);       // elements
  static constexpr int kQueryTile = kRows * TileRow(kD);  // elements
  static constexpr int kShared = (kQueryTile + 2 * kTile) * 2 + (kParts > 1 ? kRows * kScoreRow * 4 : 0);
  static_assert(kScored % 16 == 0 && kChannels % 16 == 0);
};

// Shared memory of a block.
template <typename Shape>
struct PrefillMemory {
  uint16_t* query;
  uint16_t* key;
  uint16_t* value;
  float* scores;  // [kRows, kScoreRow], where warps share rows

  GPU_FN PrefillMemory()
      : query(reinterpret_cast<uint16_t*>(gpu::Shared())),
        key(query + Shape::kQueryTile),
        value(key + Shape::kTile),
        scores(reinterpret_cast<float*>(value + Shape::kTile)) {}
};

// Element e of a fragment of scores or sums: row lane / 4 + e / 2 * 8, column lane % 4 * 2 + e % 2.
template <typename Shape>
struct PrefillSums {
  float output[Shape::kChannels / 8][4] = {};
  float maximum[2];
  float weights[2] = {};  // this lane's part
};

template <typename Shape>
GPU_FN void CopyQuery(const DeviceAttention& call, const TileBlock& mine, uint16_t* to) {
  constexpr int kChunks = Shape::kD / 8;
  const DeviceHeads& query = call.query;
  const auto* const base = static_cast<const uint16_t*>(query.data);
  for (int i = gpu::Thread(); i < Shape::kRows * kChunks; i += Shape::kThreads) {
    const int row = i / kChunks, channel = i % kChunks * 8, r = mine.row + row;
    const bool in = r < mine.rows && channel < call.D;
    const int64_t offset =
        mine.b * query.batch_stride + mine.Head(r) * query.head_stride + mine.Token(r) * query.token_stride + channel;
    gpu::CopyAsync(to + row * TileRow(Shape::kD) + channel, in ? base + offset : base, in ? 16 : 0);
  }
}

// Dot products of the warp's 16 rows and its part of the keys.
template <typename Shape>
GPU_FN void PrefillDots(float (&dots)[Shape::kScored / 8][4], const PrefillMemory<Shape>& memory, int group, int part) {
  constexpr int kRow = TileRow(Shape::kD);
  const int lane = gpu::Thread() % 32;
  const uint16_t* const query = memory.query + (group * 16 + lane % 16) * kRow + lane / 16 * 8;
  const uint16_t* const key = memory.key + (part * Shape::kScored + lane % 8 + lane / 16 * 8) * kRow + lane / 8 % 2 * 8;
  GPU_UNROLL
  for (int step = 0; step < Shape::kD / 16; ++step) {
    uint32_t a[4];
    gpu::LdMatrix(a, query + step * 16);
    GPU_UNROLL
    for (int n = 0; n < Shape::kScored / 16; ++n) {
      uint32_t r[4];  // keys 0 to 7: channels 0 to 7, 8 to 15; keys 8 to 15 likewise
      gpu::LdMatrix(r, key + n * 16 * kRow + step * 16);
      const uint32_t first[2] = {r[0], r[1]}, second[2] = {r[2], r[3]};
      gpu::Mma<typename Shape::Element>(dots[2 * n], a, first);
      gpu::Mma<typename Shape::Element>(dots[2 * n + 1], a, second);
    }
  }
}

// Scores x become weights; what was summed before fades.
template <typename Shape>
GPU_FN void PrefillWeights(float (&x)[Shape::kKeys / 8][4], PrefillSums<Shape>& sums) {
  float fade[2];
  GPU_UNROLL
  for (int h = 0; h < 2; ++h) {
    float top = sums.maximum[h];
    GPU_UNROLL
    for (int n = 0; n < Shape::kKeys / 8; ++n) top = gpu::Max(top, gpu::Max(x[n][2 * h], x[n][2 * h + 1]));
    top = gpu::Max(top, gpu::ShuffleXor(top, 1));
    top = gpu::Max(top, gpu::ShuffleXor(top, 2));
    const float base = BaseOf(top);
    fade[h] = gpu::Exp2(sums.maximum[h] - base);
    sums.maximum[h] = top;
    sums.weights[h] *= fade[h];
    GPU_UNROLL
    for (int n = 0; n < Shape::kKeys / 8; ++n) {
      GPU_UNROLL
      for (int e = 0; e < 2; ++e) {
        x[n][2 * h + e] = gpu::Exp2(x[n][2 * h + e] - base);
        sums.weights[h] += x[n][2 * h + e];
      }
    }
  }
  GPU_UNROLL
  for (int n = 0; n < Shape::kChannels / 8; ++n) {
    GPU_UNROLL
    for (int e = 0; e < 4; ++e) sums.output[n][e] *= fade[e / 2];
  }
}

// O += P V of the warp's channels; a fragment of scores is one of P.
template <typename Shape>
GPU_FN void PrefillValues(PrefillSums<Shape>& sums, const float (&x)[Shape::kKeys / 8][4],
                          const PrefillMemory<Shape>& memory, int part) {
  using Element = typename Shape::Element;
  constexpr int kRow = TileRow(Shape::kD);
  const int lane = gpu::Thread() % 32;
  const uint16_t* const value = memory.value + lane % 16 * kRow + part * Shape::kChannels + lane / 16 * 8;
  GPU_UNROLL
  for (int step = 0; step < Shape::kKeys / 16; ++step) {
    const uint32_t a[4] = {gpu::Pack2<Element>(x[2 * step][0], x[2 * step][1]),
                           gpu::Pack2<Element>(x[2 * step][2], x[2 * step][3]),
                           gpu::Pack2<Element>(x[2 * step + 1][0], x[2 * step + 1][1]),
                           gpu::Pack2<Element>(x[2 * step + 1][2], x[2 * step + 1][3])};
    GPU_UNROLL
    for (int n = 0; n < Shape::kChannels / 16; ++n) {
      uint32_t r[4];  // channels 0 to 7: keys 0 to 7, 8 to 15; channels 8 to 15 likewise
      gpu::LdMatrixTrans(r, value + step * 16 * kRow + n * 16);
      const uint32_t first[2] = {r[0], r[1]}, second[2] = {r[2], r[3]};
      gpu::Mma<Element>(sums.output[2 * n], a, first);
      gpu::Mma<Element>(sums.output[2 * n + 1], a, second);
    }
  }
}

template <typename Shape>
GPU_FN void PrefillLoop(const DeviceAttention& call, const TileBlock& mine, PrefillSums<Shape>& sums) {
  const PrefillMemory<Shape> memory;
  const int lane = gpu::Thread() % 32, warp = gpu::Thread() / 32;
  const int group = warp / Shape::kParts, part = warp % Shape::kParts;
  const int count = (mine.keys.end - mine.keys.begin + Shape::kKeys - 1) / Shape::kKeys;
  const auto copy = [&](int i, const DeviceHeads& heads, uint16_t* to) {
    if (i < count) {
      const int key = mine.keys.begin + i * Shape::kKeys;
      const auto* const from = static_cast<const uint16_t*>(heads.data) + mine.b * heads.batch_stride +
                               mine.kv_head * heads.head_stride + key * heads.token_stride;
      CopyTile<Shape::kD, Shape::kKeys, Shape::kThreads>(to, from, heads.token_stride, mine.keys.end - key, call.D,
                                                         gpu::Thread());
    }
    gpu::CopyCommit();
  };
  CopyQuery<Shape>(call, mine, memory.query);
  copy(0, call.key, memory.key);
  const int r = mine.row + group * 16 + lane / 4;  // and r + 8
  const Range range[2] = {mine.RangeOf(call, r), mine.RangeOf(call, r + 8)};
  sums.maximum[0] = sums.maximum[1] = -gpu::Infinity();
  const ScoreScale scaled(call);
  for (int i = 0; i < count; ++i) {
    // K arrives, and Q.
    gpu::CopyWait<0>();
    // All threads' parts are here; nobody reads V or the scores any more.
    gpu::SyncThreads();
    copy(i, call.value, memory.value);
    float dots[Shape::kScored / 8][4] = {};
    PrefillDots<Shape>(dots, memory, group, part);
    float* const scores = memory.scores + (group * 16 + lane / 4) * Shape::kScoreRow + lane % 4 * 2;
    if constexpr (Shape::kParts > 1) {
      GPU_UNROLL
      for (int n = 0; n < Shape::kScored / 8; ++n) {
        GPU_UNROLL
        for (int e = 0; e < 4; ++e)
          scores[e / 2 * 8 * Shape::kScoreRow + part * Shape::kScored + n * 8 + e % 2] = dots[n][e];
      }
    }
    // V arrives.
    gpu::CopyWait<0>();
    // All threads' parts are here, and all scores; nobody reads K any more.
    gpu::SyncThreads();
    copy(i + 1, call.key, memory.key);
    float x[Shape::kKeys / 8][4];
    GPU_UNROLL
    for (int n = 0; n < Shape::kKeys / 8; ++n) {
      GPU_UNROLL
      for (int e = 0; e < 4; ++e) {
        float dot = dots[n % (Shape::kScored / 8)][e];
        if constexpr (Shape::kParts > 1) dot = scores[e / 2 * 8 * Shape::kScoreRow + n * 8 + e % 2];
        const int key = mine.keys.begin + i * Shape::kKeys + n * 8 + lane % 4 * 2 + e % 2;
        x[n][e] = mine.Score(call, scaled, range[e / 2], dot, r + e / 2 * 8, key, mine.CountOf(call, key));
      }
    }
    PrefillWeights<Shape>(x, sums);
    PrefillValues<Shape>(sums, x, memory, part);
  }
  // A block without keys has copied its query.
  gpu::CopyWait<0>();
}

template <typename Shape>
GPU_KERNEL(Shape::kThreads, 1)
PrefillKernel(GPU_PARAM DeviceAttention call, GPU_PARAM AttendGrid grid) {
  // Later rows see more keys: they begin first.
  const int tile = static_cast<int>(gpu::Grid().x - 1 - gpu::Block().x);
  const TileBlock mine = TileBlock::Of<Shape>(call, grid, tile, 0);
  PrefillSums<Shape> sums;
  PrefillLoop<Shape>(call, mine, sums);
  const int lane = gpu::Thread() % 32, warp = gpu::Thread() / 32;
  const DeviceOutput& to = call.output;
  GPU_UNROLL
  for (int h = 0; h < 2; ++h) {
    float weights = sums.weights[h];
    weights += gpu::ShuffleXor(weights, 1);
    weights += gpu::ShuffleXor(weights, 2);
    const int r = mine.row + warp / Shape::kParts * 16 + lane / 4 + 8 * h;
    if (r >= mine.rows) continue;
    const float factor = OutputFactor(call, mine.Head(r), sums.maximum[h], weights);
    uint16_t* const row = static_cast<uint16_t*>(to.data) + mine.b * to.batch_stride + mine.Head(r) * to.head_stride +
                          mine.Token(r) * to.token_stride;
    GPU_UNROLL
    for (int n = 0; n < Shape::kChannels / 8; ++n) {
      const int d = warp % Shape::kParts * Shape::kChannels + n * 8 + lane % 4 * 2;
      if (d >= call.D) continue;
      *reinterpret_cast<uint32_t*>(row + d) =
          gpu::Pack2<typename Shape::Element>(sums.output[n][2 * h] * factor, sums.output[n][2 * h + 1] * factor);
    }
  }
}

}  // namespace kvshare::cuda
