// Decode and short chunks of 16-bit caches. The rows (token, head of the group) are the columns of the tensor cores'
// tile: K and V are the 16-row operand, so eight heads fill a tile and every element of K and V is read once.
//
//   S^T [16 keys x 8 rows] = K Q^T          O^T [D x 8 rows] += V^T P^T
//
// Every warp owns 16 keys at a time and a ring of its own, so the loop has no barrier of the block. S^T and O^T have
// one layout, whose column is the row; so a row's maximum and fading stay with its threads, and P^T is S^T by
// MovMatrix.
#pragma once

#include "cuda/block-inl.h"
#include "cuda/softmax-inl.h"
#include "cuda/tile-inl.h"

namespace kvshare::cuda {

template <typename Element_, int kD_, int kTiles_, int kWarps_, int kStages_, bool kQueryInRegisters_>
struct DecodeShape {
  using Element = Element_;
  static constexpr int kD = kD_;          // of K and V, or more
  static constexpr int kTiles = kTiles_;  // of eight rows
  static constexpr int kWarps = kWarps_;
  static constexpr int kStages = kStages_;                       // pairs of tiles that are under way in a warp's ring
  static constexpr bool kQueryInRegisters = kQueryInRegisters_;  // else in shared memory, as fragments
  // Groups of copies that are younger than the K, or the V, that is waited for: K and V take turns.
  static constexpr int kNewerThanKey = 2 * kStages - 1;
  static constexpr int kNewerThanValue = 2 * kStages - 1;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kRows = kTiles * 8;
  static constexpr int kKeys = 16;  // of a tile
  static constexpr int kSteps = kD / 16;
  static constexpr int kTile = kKeys * TileRow(kD);  // elements
  static constexpr int kSumRow = kD + 4;             // floats, in the merge of the warps
  static constexpr int kRingBytes = kWarps * kStages * 2 * kTile * 2;
  static constexpr int kMergeBytes = kWarps * kRows * (kSumRow + 2) * 4;  // lies in place of the rings
  static constexpr int kQueryBytes = kQueryInRegisters ? 0 : kTiles * kSteps * 32 * 8;
  static constexpr int kShared = (kRingBytes > kMergeBytes ? kRingBytes : kMergeBytes) + kQueryBytes;
};

// Q's fragments: columns are rows of the block, zeros past the last one and past the head size.
template <typename Shape>
struct DecodeQuery {
  static constexpr int kHeld = Shape::kQueryInRegisters ? Shape::kTiles : 1;
  uint32_t held[kHeld][Shape::kQueryInRegisters ? Shape::kSteps : 1][2];
  uint32_t* shared;

  GPU_FN DecodeQuery(const DeviceAttention& call, const TileBlock& mine)
      : shared(reinterpret_cast<uint32_t*>(gpu::Shared() + Shape::kShared - Shape::kQueryBytes)) {
    const int lane = gpu::Thread() % 32, warp = gpu::Thread() / 32;
    const auto* const query = static_cast<const uint16_t*>(call.query.data) + mine.b * call.query.batch_stride;
    GPU_UNROLL
    for (int tile = 0; tile < Shape::kTiles; ++tile) {
      const int r = mine.row + tile * 8 + lane / 4;
      const uint16_t* const row =
          query + mine.Head(r) * call.query.head_stride + mine.Token(r) * call.query.token_stride;
      GPU_UNROLL
      for (int step = 0; step < Shape::kSteps; ++step) {
        if (!Shape::kQueryInRegisters && step % Shape::kWarps != warp) continue;
        GPU_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int channel = step * 16 + 8 * half + lane % 4 * 2;
          const bool in = r < mine.rows && channel < call.D;
          const uint32_t two = in ? *reinterpret_cast<const uint32_t*>(row + channel) : 0;
          if constexpr (Shape::kQueryInRegisters)
            held[tile][step][half] = two;
          else
            shared[Place(tile, step, lane) + half] = two;
        }
      }
    }
    if (!Shape::kQueryInRegisters) gpu::SyncThreads();
  }
  GPU_FN static int Place(int tile, int step, int lane) { return ((tile * Shape::kSteps + step) * 32 + lane) * 2; }
  GPU_FN void Get(uint32_t (&two)[2], int tile, int step) const {
    GPU_UNROLL
    for (int half = 0; half < 2; ++half) {
      if constexpr (Shape::kQueryInRegisters)
        two[half] = held[tile][step][half];
      else
        two[half] = shared[Place(tile, step, gpu::Thread() % 32) + half];
    }
  }
};

// The sums of one warp. Element e of a fragment belongs to column e % 2 and to key or channel e / 2 * 8.
template <typename Shape>
struct DecodeSums {
  float output[Shape::kTiles][Shape::kSteps][4] = {};
  float maximum[Shape::kTiles][2];
  float weights[Shape::kTiles][2] = {};  // this lane's part
};

// S^T of the 16 keys in `tile`.
template <typename Shape>
GPU_FN void DecodeScores(float (&scores)[Shape::kTiles][4], const uint16_t* tile, const DecodeQuery<Shape>& query) {
  const int lane = gpu::Thread() % 32;
  const uint16_t* const row = tile + lane % 16 * TileRow(Shape::kD) + lane / 16 * 8;
  float odd[Shape::kTiles][4] = {};  // two chains of sums instead of one
  GPU_UNROLL
  for (int step = 0; step < Shape::kSteps; ++step) {
    uint32_t keys[4];
    gpu::LdMatrix(keys, row + step * 16);
    GPU_UNROLL
    for (int n = 0; n < Shape::kTiles; ++n) {
      uint32_t two[2];
      query.Get(two, n, step);
      gpu::Mma<typename Shape::Element>(step % 2 == 0 ? scores[n] : odd[n], keys, two);
    }
  }
  GPU_UNROLL
  for (int n = 0; n < Shape::kTiles; ++n) {
    GPU_UNROLL
    for (int e = 0; e < 4; ++e) scores[n][e] += odd[n][e];
  }
}

// Weights of tile n's scores as the fragments of P^T; what was summed before fades.
template <typename Shape>
GPU_FN void DecodeWeights(uint32_t (&packed)[2], float (&x)[4], DecodeSums<Shape>& sums, int n) {
  float fade[2];
  GPU_UNROLL
  for (int e = 0; e < 2; ++e) {
    float top = gpu::Max(sums.maximum[n][e], gpu::Max(x[e], x[e + 2]));
    for (int mask = 4; mask < 32; mask *= 2) top = gpu::Max(top, gpu::ShuffleXor(top, mask));
    const float base = BaseOf(top);
    fade[e] = gpu::Exp2(sums.maximum[n][e] - base);
    sums.maximum[n][e] = top;
    x[e] = gpu::Exp2(x[e] - base);
    x[e + 2] = gpu::Exp2(x[e + 2] - base);
    sums.weights[n][e] = sums.weights[n][e] * fade[e] + x[e] + x[e + 2];
  }
  using Element = typename Shape::Element;
  packed[0] = gpu::MovMatrixTrans(gpu::Pack2<Element>(x[0], x[1]));
  packed[1] = gpu::MovMatrixTrans(gpu::Pack2<Element>(x[2], x[3]));
  GPU_UNROLL
  for (int step = 0; step < Shape::kSteps; ++step) {
    GPU_UNROLL
    for (int e = 0; e < 4; ++e) sums.output[n][step][e] *= fade[e % 2];
  }
}

// The keys of this warp: tiles warp, warp + kWarps, ... of the split.
template <typename Shape>
GPU_FN void DecodeLoop(const DeviceAttention& call, const TileBlock& mine, DecodeSums<Shape>& sums) {
  const int lane = gpu::Thread() % 32, warp = gpu::Thread() / 32;
  auto* const ring = reinterpret_cast<uint16_t*>(gpu::Shared()) + warp * Shape::kStages * 2 * Shape::kTile;
  const int tiles = (mine.keys.end - mine.keys.begin + Shape::kKeys - 1) / Shape::kKeys;
  const int count = (gpu::Max(tiles - warp, 0) + Shape::kWarps - 1) / Shape::kWarps;
  const auto first_key = [&](int i) { return mine.keys.begin + (warp + i * Shape::kWarps) * Shape::kKeys; };
  const auto at = [&](int i, bool value) { return ring + (i % Shape::kStages * 2 + (value ? 1 : 0)) * Shape::kTile; };
  const auto copy = [&](int i, bool value) {
    if (i < count) {
      const DeviceHeads& heads = value ? call.value : call.key;
      const auto* const from = static_cast<const uint16_t*>(heads.data) + mine.b * heads.batch_stride +
                               mine.kv_head * heads.head_stride + first_key(i) * heads.token_stride;
      CopyTile<Shape::kD, Shape::kKeys, 32>(at(i, value), from, heads.token_stride, mine.keys.end - first_key(i),
                                            call.D, lane);
    }
    gpu::CopyCommit();
  };
  GPU_UNROLL
  for (int i = 0; i < Shape::kStages; ++i) {
    copy(i, false);
    copy(i, true);
  }
  const DecodeQuery<Shape> query(call, mine);
  Range range[Shape::kTiles][2];
  GPU_UNROLL
  for (int n = 0; n < Shape::kTiles; ++n) {
    GPU_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int r = mine.row + n * 8 + lane % 4 * 2 + e;
      range[n][e] = mine.RangeOf(call, r);
      sums.maximum[n][e] = -gpu::Infinity();
    }
  }
  const ScoreScale scaled(call);
  for (int i = 0; i < count; ++i) {
    gpu::CopyWait<Shape::kNewerThanKey>();
    // The lanes' parts of K are here.
    gpu::SyncWarp();
    float scores[Shape::kTiles][4] = {};
    DecodeScores<Shape>(scores, at(i, false), query);
    // No lane reads K any more.
    gpu::SyncWarp();
    copy(i + Shape::kStages, false);
    uint32_t packed[Shape::kTiles][2];
    GPU_UNROLL
    for (int n = 0; n < Shape::kTiles; ++n) {
      float x[4];
      GPU_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int key = first_key(i) + lane / 4 + e / 2 * 8;
        const int r = mine.row + n * 8 + lane % 4 * 2 + e % 2;
        x[e] = mine.Score(call, scaled, range[n][e % 2], scores[n][e], r, key);
      }
      DecodeWeights<Shape>(packed[n], x, sums, n);
    }
    gpu::CopyWait<Shape::kNewerThanValue>();
    // The lanes' parts of V are here.
    gpu::SyncWarp();
    const uint16_t* const row = at(i, true) + (lane % 8 + lane / 16 * 8) * TileRow(Shape::kD) + lane / 8 % 2 * 8;
    GPU_UNROLL
    for (int step = 0; step < Shape::kSteps; ++step) {
      uint32_t channels[4];
      gpu::LdMatrixTrans(channels, row + step * 16);
      GPU_UNROLL
      for (int n = 0; n < Shape::kTiles; ++n)
        gpu::Mma<typename Shape::Element>(sums.output[n][step], channels, packed[n]);
    }
    // No lane reads V any more.
    gpu::SyncWarp();
    copy(i + Shape::kStages, true);
  }
}

// The warps' sums, one beside the other in shared memory, in place of the rings.
template <typename Shape>
struct DecodeMerge {
  float* sums;     // [kWarps, kRows, kSumRow]
  float* softmax;  // [kWarps, kRows, 2]

  GPU_FN DecodeMerge()
      : sums(reinterpret_cast<float*>(gpu::Shared())), softmax(sums + Shape::kWarps * Shape::kRows * Shape::kSumRow) {}

  GPU_FN void Put(const DecodeSums<Shape>& mine) const {
    const int lane = gpu::Thread() % 32, warp = gpu::Thread() / 32;
    GPU_UNROLL
    for (int n = 0; n < Shape::kTiles; ++n) {
      GPU_UNROLL
      for (int e = 0; e < 2; ++e) {
        float weights = mine.weights[n][e];
        for (int mask = 4; mask < 32; mask *= 2) weights += gpu::ShuffleXor(weights, mask);
        const int r = warp * Shape::kRows + n * 8 + lane % 4 * 2 + e;
        if (lane < 4) {
          softmax[2 * r] = mine.maximum[n][e];
          softmax[2 * r + 1] = weights;
        }
        GPU_UNROLL
        for (int step = 0; step < Shape::kSteps; ++step) {
          sums[r * Shape::kSumRow + step * 16 + lane / 4] = mine.output[n][step][e];
          sums[r * Shape::kSumRow + step * 16 + lane / 4 + 8] = mine.output[n][step][e + 2];
        }
      }
    }
  }
  // Of row r and channels d, d + 1: all warps' weighted sums, relative to the maximum that is returned.
  GPU_FN float Get(int r, int d, float (&two)[2], float* weights) const {
    float top = -gpu::Infinity();
    GPU_UNROLL
    for (int warp = 0; warp < Shape::kWarps; ++warp) top = gpu::Max(top, softmax[2 * (warp * Shape::kRows + r)]);
    GPU_UNROLL
    for (int warp = 0; warp < Shape::kWarps; ++warp) {
      const int place = warp * Shape::kRows + r;
      const float fade = gpu::Exp2(softmax[2 * place] - BaseOf(top));
      *weights += fade * softmax[2 * place + 1];
      two[0] += fade * sums[place * Shape::kSumRow + d];
      two[1] += fade * sums[place * Shape::kSumRow + d + 1];
    }
    return top;
  }
};

template <typename Shape>
GPU_KERNEL(Shape::kThreads, 1)
DecodeWarpKernel(GPU_PARAM DeviceAttention call, GPU_PARAM AttendGrid grid) {
  const TileBlock mine =
      TileBlock::Of<Shape>(call, grid, static_cast<int>(gpu::Block().x), static_cast<int>(gpu::Block().y));
  {
    DecodeSums<Shape> sums;
    DecodeLoop<Shape>(call, mine, sums);
    // The rings become the merge's memory.
    gpu::SyncThreads();
    DecodeMerge<Shape>().Put(sums);
  }
  // All warps' sums are here.
  gpu::SyncThreads();
  const DecodeMerge<Shape> merge;
  for (int i = gpu::Thread(); i < Shape::kRows * (Shape::kD / 2); i += Shape::kThreads) {
    const int n = i / (Shape::kD / 2), d = i % (Shape::kD / 2) * 2, r = mine.row + n;
    float two[2] = {}, weights = 0;
    const float top = merge.Get(n, d, two, &weights);
    if (grid.splits == 1) {
      if (r >= mine.rows || d >= call.D) continue;
      const float factor = OutputFactor(call, mine.Head(r), top, weights);
      const DeviceOutput& to = call.output;
      uint16_t* const row = static_cast<uint16_t*>(to.data) + mine.b * to.batch_stride + mine.Head(r) * to.head_stride +
                            mine.Token(r) * to.token_stride;
      *reinterpret_cast<uint32_t*>(row + d) = gpu::Pack2<typename Shape::Element>(two[0] * factor, two[1] * factor);
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
