// The products of decode on tensor cores, for caches of 16-bit elements or of codes. K and V are the 16-row operand,
// rows (token, head of the group) its 8 columns, so every element of K and V is read once:
//
//   S^T [16 keys x 8 rows] = K Q^T          O^T [D x 8 rows] += V^T P^T
//
// S^T and O^T have one layout, whose column is the row; so a row's fading stays with its threads, and P^T is S^T by
// MovMatrix.
//
// LdMatrix moves units of 16 bits, which hold 1, 2 or 4 elements. Codes are widened in registers. A lane then has
// neighbouring channels of one unit where a 16-bit element would be alone; so a step of 16 channels takes them in
// another order, and query and sums follow it.
#pragma once

#include "cuda/block-inl.h"
#include "cuda/codes-inl.h"
#include "cuda/tile-inl.h"

namespace kvshare::cuda {

template <typename Shape>
struct TensorProducts {
  using Element = typename Shape::Element;
  static constexpr int kTiles = Shape::kWarpTiles;
  static constexpr int kSteps = Shape::kD / 16;
  static constexpr int kCodes = 16 / kBitsOf<typename Shape::Code>;  // of a unit
  static constexpr bool kHoldsQuery = Shape::kQueryInRegisters;

  // Element e of a fragment belongs to column e % 2 and to key or channel e / 2 * 8, in the order of the step.
  float sums[kTiles][kSteps][4] = {};
  uint32_t held[kHoldsQuery ? kTiles : 1][kHoldsQuery ? kSteps : 1][2];
  uint32_t* query;  // [Shape::kTiles, kSteps, lanes, 2] of shared memory, where not held
  int first_tile;   // of this warp

  // Behind the rings.
  static constexpr int SharedBytes() { return kHoldsQuery ? 0 : Shape::kTiles * kSteps * 32 * 8; }

  // Channels of Q's fragment that a lane has: this one and the next.
  GPU_FN static int QueryChannel(int step, int half, int lane) {
    if constexpr (kCodes == 1) return step * 16 + half * 8 + lane % 4 * 2;
    if constexpr (kCodes == 2) return step * 16 + lane % 4 * 4 + half * 2;
    return step / 2 * 32 + lane % 4 * 8 + step % 2 * 4 + half * 2;
  }
  // The channel of sums[][step][e], e / 2 being `half`.
  GPU_FN static int SumChannel(int step, int half, int lane) {
    if constexpr (kCodes == 1) return step * 16 + half * 8 + lane / 4;
    if constexpr (kCodes == 2) return step * 16 + lane / 4 * 2 + half;
    return step / 2 * 32 + lane / 4 * 4 + step % 2 * 2 + half;
  }

  // Q's fragments: columns are rows of the block, zeros past the last one and past the head size.
  GPU_FN TensorProducts(const DeviceAttention& call, const TileBlock& mine, const KeyScale& scale)
      : query(reinterpret_cast<uint32_t*>(gpu::Shared() + Shape::kLoopBytes)),
        first_tile(gpu::Thread() / 32 % Shape::kTeam * kTiles) {
    const int lane = gpu::Thread() % 32, warp = gpu::Thread() / 32;
    const auto* const from = static_cast<const uint16_t*>(call.query.data) + mine.b * call.query.batch_stride;
    GPU_UNROLL
    for (int tile = 0; tile < (kHoldsQuery ? kTiles : Shape::kTiles); ++tile) {
      const int r = mine.row + (kHoldsQuery ? first_tile + tile : tile) * 8 + lane / 4;
      const uint16_t* const row =
          from + mine.Head(r) * call.query.head_stride + mine.Token(r) * call.query.token_stride;
      GPU_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        if (!kHoldsQuery && step % Shape::kWarps != warp) continue;
        GPU_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int channel = QueryChannel(step, half, lane);
          const bool in = r < mine.rows && channel < call.D;
          uint32_t two = in ? *reinterpret_cast<const uint32_t*>(row + channel) : 0;
          if (kCodes > 1 && in && scale.channels != nullptr) two = Scaled(two, scale, channel);
          if constexpr (kHoldsQuery)
            held[tile][step][half] = two;
          else
            query[Place(tile, step, lane) + half] = two;
        }
      }
    }
    if (!kHoldsQuery) gpu::SyncThreads();
  }
  GPU_FN static uint32_t Scaled(uint32_t two, const KeyScale& scale, int channel) {
    return gpu::Pack2<Element>(gpu::Widen<Element>(static_cast<uint16_t>(two)) * scale.Of(channel),
                               gpu::Widen<Element>(static_cast<uint16_t>(two >> 16)) * scale.Of(channel + 1));
  }
  GPU_FN static int Place(int tile, int step, int lane) { return ((tile * kSteps + step) * 32 + lane) * 2; }
  GPU_FN void GetQuery(uint32_t (&two)[2], int tile, int step) const {
    GPU_UNROLL
    for (int half = 0; half < 2; ++half) {
      if constexpr (kHoldsQuery)
        two[half] = held[tile][step][half];
      else
        two[half] = query[Place(first_tile + tile, step, gpu::Thread() % 32) + half];
    }
  }

  // The 16-row operand of step `part` of the kCodes that four words of a tile of K hold: rows are keys.
  GPU_FN static void WidenKeys(uint32_t (&keys)[4], const uint32_t (&words)[4], int part) {
    GPU_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint32_t word = words[part * 2 / kCodes * 2 + i % 2];
      const int code = part * 4 % (2 * kCodes) + i / 2 * 2;
      keys[i] = CodePair<Element, typename Shape::Code>(word, code, code + 1);
    }
  }
  // The same of V: rows are channels, and a word has one unit of two keys.
  GPU_FN static void WidenValues(uint32_t (&channels)[4], const uint32_t (&words)[4], int part) {
    GPU_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint32_t word = words[part * 2 / kCodes + i / 2 * 2];
      const int code = part * 2 % kCodes + i % 2;
      channels[i] = CodePair<Element, typename Shape::Code>(word, code, kCodes + code);
    }
  }

  // Compilers move loads ahead, past any barrier but one of the warp. Beside codes that are widened, many would spill.
  GPU_FN static void LoadFewAhead(int load) {
    if (kCodes > 1 && load % 4 == 3) gpu::SyncWarp();
  }

  // S^T of the 16 keys in `tile`.
  GPU_FN void Scores(float (&scores)[kTiles][4], const uint16_t* tile) const {
    const int lane = gpu::Thread() % 32;
    const uint16_t* const row = tile + lane % 16 * TileRow(Shape::kUnits) + lane / 16 * 8;
    float odd[kTiles][4] = {};  // two chains of sums instead of one
    GPU_UNROLL
    for (int load = 0; load < kSteps / kCodes; ++load) {
      uint32_t words[4];
      LoadFewAhead(load);
      gpu::LdMatrix(words, row + load * 16);
      GPU_UNROLL
      for (int part = 0; part < kCodes; ++part) {
        const int step = load * kCodes + part;
        uint32_t keys[4];
        if constexpr (kCodes > 1) WidenKeys(keys, words, part);
        GPU_UNROLL
        for (int n = 0; n < kTiles; ++n) {
          uint32_t two[2];
          GetQuery(two, n, step);
          gpu::Mma<Element>(step % 2 == 0 ? scores[n] : odd[n], kCodes > 1 ? keys : words, two);
        }
      }
    }
    GPU_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      GPU_UNROLL
      for (int e = 0; e < 4; ++e) scores[n][e] += odd[n][e];
    }
  }

  // Weights as the fragments of P^T; what was summed before fades.
  GPU_FN void Weigh(uint32_t (&packed)[kTiles][2], const float (&x)[4], const float (&fade)[2], int n) {
    packed[n][0] = gpu::MovMatrixTrans(gpu::Pack2<Element>(x[0], x[1]));
    packed[n][1] = gpu::MovMatrixTrans(gpu::Pack2<Element>(x[2], x[3]));
    GPU_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      GPU_UNROLL
      for (int e = 0; e < 4; ++e) sums[n][step][e] *= fade[e % 2];
    }
  }

  // O^T += V^T P^T of the 16 keys in `tile`.
  GPU_FN void Sum(const uint32_t (&packed)[kTiles][2], const uint16_t* tile) {
    const int lane = gpu::Thread() % 32;
    const uint16_t* const row = tile + (lane % 8 + lane / 16 * 8) * TileRow(Shape::kUnits) + lane / 8 % 2 * 8;
    GPU_UNROLL
    for (int load = 0; load < kSteps / kCodes; ++load) {
      uint32_t words[4];
      LoadFewAhead(load);
      gpu::LdMatrixTrans(words, row + load * 16);
      GPU_UNROLL
      for (int part = 0; part < kCodes; ++part) {
        uint32_t channels[4];
        if constexpr (kCodes > 1) WidenValues(channels, words, part);
        GPU_UNROLL
        for (int n = 0; n < kTiles; ++n)
          gpu::Mma<Element>(sums[n][load * kCodes + part], kCodes > 1 ? channels : words, packed[n]);
      }
    }
  }

  // put(row of the warp, channel, sum) of every sum that this lane has.
  template <typename Put>
  GPU_FN void ForEachSum(const Put& put) const {
    const int lane = gpu::Thread() % 32;
    GPU_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      GPU_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        GPU_UNROLL
        for (int e = 0; e < 4; ++e) put(n * 8 + lane % 4 * 2 + e % 2, SumChannel(step, e / 2, lane), sums[n][step][e]);
      }
    }
  }
};

}  // namespace kvshare::cuda
