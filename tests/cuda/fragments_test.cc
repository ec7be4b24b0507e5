// Which lane holds which element: the emulator against CuTe's headers, which NVIDIA wrote and compiles for its cards.
#include <gtest/gtest.h>

#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <random>

#include "core/half.h"
#include "cuda/emulation/emulator.h"
#include "cuda/gpu.h"

namespace kvshare::cuda {
namespace {

using gpu::emulation::RunGrid;

template <typename Element, typename Traits>
void ExpectMmaLikeCute() {
  std::mt19937 random(1);
  const auto small = [&] { return static_cast<float>(static_cast<int>(random() % 9) - 4); };  // exact in any type
  float a[16][16], b[16][8], c[16][8];
  for (auto& row : a)
    for (float& x : row) x = small();
  for (auto& row : b)
    for (float& x : row) x = small();
  for (auto& row : c)
    for (float& x : row) x = small();
  int mismatches = 0;
  RunGrid({}, 32, 0, [&] {
    const int lane = gpu::Thread();
    uint32_t ra[4], rb[2];
    float rc[4];
    const auto at_a = [&](int v) {
      const int i = typename Traits::ALayout{}(lane, v);
      return a[i % 16][i / 16];
    };
    const auto at_b = [&](int v) {
      const int i = typename Traits::BLayout{}(lane, v);
      return b[i / 8][i % 8];
    };
    for (int i = 0; i < 4; ++i) ra[i] = gpu::Pack2<Element>(at_a(2 * i), at_a(2 * i + 1));
    for (int i = 0; i < 2; ++i) rb[i] = gpu::Pack2<Element>(at_b(2 * i), at_b(2 * i + 1));
    for (int v = 0; v < 4; ++v) {
      const int i = typename Traits::CLayout{}(lane, v);
      rc[v] = c[i % 16][i / 16];
    }
    gpu::Mma<Element>(rc, ra, rb);
    for (int v = 0; v < 4; ++v) {
      const int i = typename Traits::CLayout{}(lane, v);
      float want = c[i % 16][i / 16];
      for (int k = 0; k < 16; ++k) want += a[i % 16][k] * b[k][i / 16];
      mismatches += rc[v] != want;
    }
  });
  EXPECT_EQ(mismatches, 0);
}

TEST(Fragments, OfMmaAreThoseOfCute) {
  ExpectMmaLikeCute<gpu::Half, cute::MMA_Traits<cute::SM80_16x8x16_F32F16F16F32_TN>>();
  ExpectMmaLikeCute<gpu::BF16, cute::MMA_Traits<cute::SM80_16x8x16_F32BF16BF16F32_TN>>();
}

template <typename Traits>
void ExpectLdMatrixLikeCute(bool trans) {
  int mismatches = 0;
  RunGrid({}, 32, 32 * 16, [&] {
    const int lane = gpu::Thread();
    auto* const row = reinterpret_cast<uint16_t*>(gpu::Shared()) + 8 * lane;
    // Each element holds its place in the layout of what the lanes name.
    for (int column = 0; column < 8; ++column)
      row[column] = static_cast<uint16_t>(int(typename Traits::SrcLayout{}(lane, 16 * column)) / 16);
    gpu::SyncWarp();
    uint32_t r[4];
    if (trans)
      gpu::LdMatrixTrans(r, row);
    else
      gpu::LdMatrix(r, row);
    for (int v = 0; v < 8; ++v) {
      const int want = int(typename Traits::DstLayout{}(lane, 16 * v)) / 16;
      mismatches += static_cast<int>(r[v / 2] >> (v % 2 * 16) & 0xFFFF) != want;
    }
  });
  EXPECT_EQ(mismatches, 0);
}

TEST(Fragments, OfLdMatrixAreThoseOfCute) {
  ExpectLdMatrixLikeCute<cute::Copy_Traits<cute::SM75_U32x4_LDSM_N>>(false);
  ExpectLdMatrixLikeCute<cute::Copy_Traits<cute::SM75_U16x8_LDSM_T>>(true);
}

}  // namespace
}  // namespace kvshare::cuda
