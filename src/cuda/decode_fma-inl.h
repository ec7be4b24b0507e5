// The products of decode in f32, by fused multiply-adds: no tensor core keeps all bits. The cache is f32, 16-bit
// elements or codes, widened in registers. A lane has the scores of two keys and two rows, as tensor cores would leave
// them, and the sums of all eight rows and of four channels in each 128. The weights go from the one to the other
// through shared memory.
#pragma once

#include "cuda/block-inl.h"
#include "cuda/codes-inl.h"
#include "cuda/tile-inl.h"

namespace kvshare::cuda {

template <typename Shape>
struct FmaProducts {
  using Code = typename Shape::Code;
  static constexpr int kTiles = Shape::kWarpTiles;
  static constexpr int kRows = 8;                          // of a warp
  static constexpr int kPieces = Shape::kD / 128;          // of four channels, that a lane sums
  static constexpr int kTileRow = TileRow(Shape::kUnits);  // units from one row of a tile to the next
  static constexpr int kRow = Shape::kD + 4;               // floats from one row of Q to the next
  static constexpr int kQueryBytes = Shape::kTiles * kRows * kRow * 4;
  static constexpr int kWeightBytes = (Shape::kKeys + 1) * kRows * 4;  // of a warp: [keys, rows], and fading
  static_assert(kTiles == 1, "sums of more rows fill no registers");

  // Behind the rings.
  static constexpr int SharedBytes() { return kQueryBytes + Shape::kWarps * kWeightBytes; }

  float sums[kRows][kPieces][4] = {};
  const float* query;  // [rows of the warp, kRow]
  float* weights;      // [keys + 1, rows]

  GPU_FN FmaProducts(const DeviceAttention& call, const TileBlock& mine, const KeyScale& scale) {
    const int lane = gpu::Thread() % 32, warp = gpu::Thread() / 32;
    auto* const rows = reinterpret_cast<float*>(gpu::Shared() + Shape::kLoopBytes);
    query = rows + warp % Shape::kTeam * kRows * kRow;
    weights = reinterpret_cast<float*>(gpu::Shared() + Shape::kLoopBytes + kQueryBytes + warp * kWeightBytes);
    const auto* const from = static_cast<const float*>(call.query.data) + mine.b * call.query.batch_stride;
    for (int row = warp; row < Shape::kTiles * kRows; row += Shape::kWarps) {
      const int r = mine.row + row;
      const float* const source =
          from + mine.Head(r) * call.query.head_stride + mine.Token(r) * call.query.token_stride;
      for (int channel = lane; channel < Shape::kD; channel += 32) {
        const bool in = r < mine.rows && channel < call.D;
        const float factor = kBitsOf<Code> < 16 && in && scale.channels != nullptr ? scale.Of(channel) : 1.0F;
        rows[row * kRow + channel] = in ? source[channel] * factor : 0;
      }
    }
    gpu::SyncThreads();
  }

  // Laid out as a fragment of tensor cores: element e is key lane / 4 + e / 2 * 8 by row lane % 4 * 2 + e % 2.
  GPU_FN void Scores(float (&scores)[kTiles][4], const uint16_t* tile) const {
    const int lane = gpu::Thread() % 32;
    const uint16_t* const key = tile + lane / 4 * kTileRow;
    const float* const row = query + lane % 4 * 2 * kRow;
    for (int channel = 0; channel < Shape::kD; channel += 4) {
      float k[2][4], q[2][4];
      GPU_UNROLL
      for (int i = 0; i < 2; ++i) {
        LoadFour<Code>(k[i], key + i * 8 * kTileRow, channel);
        gpu::LoadShared(q[i], row + i * kRow + channel);
      }
      GPU_UNROLL
      for (int e = 0; e < 4; ++e) {
        GPU_UNROLL
        for (int c = 0; c < 4; ++c) scores[0][e] += k[e / 2][c] * q[e % 2][c];
      }
    }
  }

  GPU_FN void Weigh(uint32_t (&)[kTiles][2], const float (&x)[4], const float (&fade)[2], int) {
    const int lane = gpu::Thread() % 32;
    GPU_UNROLL
    for (int e = 0; e < 4; ++e) weights[(lane / 4 + e / 2 * 8) * kRows + lane % 4 * 2 + e % 2] = x[e];
    if (lane < 4) {
      GPU_UNROLL
      for (int e = 0; e < 2; ++e) weights[Shape::kKeys * kRows + lane * 2 + e] = fade[e];
    }
  }

  // Needs a barrier of the warp behind Weigh.
  GPU_FN void Sum(const uint32_t (&)[kTiles][2], const uint16_t* tile) {
    float row[kRows];
    GetWeights(row, Shape::kKeys);
    GPU_UNROLL
    for (int r = 0; r < kRows; ++r) {
      GPU_UNROLL
      for (int i = 0; i < kPieces * 4; ++i) sums[r][i / 4][i % 4] *= row[r];
    }
    for (int key = 0; key < Shape::kKeys; ++key) {
      GetWeights(row, key);
      GPU_UNROLL
      for (int piece = 0; piece < kPieces; ++piece) {
        float v[4];
        LoadFour<Code>(v, tile + key * kTileRow, piece * 128 + gpu::Thread() % 32 * 4);
        GPU_UNROLL
        for (int r = 0; r < kRows; ++r) {
          GPU_UNROLL
          for (int c = 0; c < 4; ++c) sums[r][piece][c] += row[r] * v[c];
        }
      }
    }
  }
  GPU_FN void GetWeights(float (&row)[kRows], int key) const {
    GPU_UNROLL
    for (int half = 0; half < 2; ++half) {
      float four[4];
      gpu::LoadShared(four, weights + key * kRows + half * 4);
      GPU_UNROLL
      for (int i = 0; i < 4; ++i) row[half * 4 + i] = four[i];
    }
  }

  template <typename Put>
  GPU_FN void ForEachSum(const Put& put) const {
    GPU_UNROLL
    for (int r = 0; r < kRows; ++r) {
      GPU_UNROLL
      for (int i = 0; i < kPieces * 4; ++i) put(r, i / 4 * 128 + gpu::Thread() % 32 * 4 + i % 4, sums[r][i / 4][i % 4]);
    }
  }
};

}  // namespace kvshare::cuda
