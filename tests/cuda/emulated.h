// What the tests of attention in the emulator share: devices, the orders of warps, NaN wherever nobody may read.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "cuda/emulation/emulator.h"
#include "cuda/emulation/runtime.h"
#include "tests/cuda/device_problem.h"

namespace kvshare::cuda::testing {

inline constexpr DeviceFacts kSmall{8, size_t{99} << 10};   // sm_89
inline constexpr DeviceFacts kLarge{8, size_t{227} << 10};  // sm_90; few multiprocessors, so that splits have work

inline double ToleranceOf(DType type) { return type == DType::kBF16 ? 1.6e-2 : type == DType::kF16 ? 2e-3 : 1e-5; }

inline void Become(const DeviceFacts& device) {
  emulation::SetDevice(device);
  ASSERT_TRUE(PrepareKernels().ok());
}

// Keys and values of sequence b that nobody may read become NaN, or the largest code.
template <typename Unseen>
void PoisonKeys(Problem& p, int64_t b, const Unseen& unseen) {
  const double nan = kvshare::testing::HoldsIntegers(p.kv_type) ? 1e9 : std::numeric_limits<double>::quiet_NaN();
  for (int64_t j = 0; j < p.T; ++j) {
    if (!unseen(j)) continue;
    for (int64_t head = 0; head < p.Hkv; ++head) {
      const int64_t row = p.bsnh ? (b * p.T + j) * p.Hkv + head : (b * p.Hkv + head) * p.T + j;
      for (int64_t d = 0; d < p.D; ++d) p.key.Set(row * p.D + d, nan);
      for (int64_t d = 0; d < p.Dv; ++d) p.value.Set(row * p.Dv + d, nan);
    }
  }
}

inline void PoisonUnseen(Problem& p) {
  for (int64_t b = 0; b < p.B; ++b) {
    const int64_t first = p.window > 0 ? std::max<int64_t>(0, p.query_position[b] - p.window + 1) : 0;
    PoisonKeys(p, b, [&](int64_t j) { return j < first || j >= p.length[b]; });
  }
}

// The same for a problem with a key mask: keys before the first and after the last that some row sees.
inline void PoisonUncounted(Problem& p) {
  for (int64_t b = 0; b < p.B; ++b) {
    std::vector<int64_t> counts(p.T);
    const auto kept = [&](int64_t j) { return LoadElement(p.key_mask.data(), p.key_mask.type, b * p.T + j) != 0; };
    for (int64_t j = 0; j < p.T; ++j) counts[j] = (j > 0 ? counts[j - 1] : 0) + (kept(j) ? 1 : 0);
    int64_t first = p.T, last = -1;
    for (int64_t s = 0; s < p.S; ++s)
      for (int64_t j = 0; j < p.T; ++j) {
        const int64_t behind = counts[p.T - p.S + s] - counts[j];
        if (!kept(j) || behind < 0 || (p.window > 0 && behind >= p.window)) continue;
        first = std::min(first, j);
        last = std::max(last, j);
      }
    PoisonKeys(p, b, [&](int64_t j) { return j < first || j > last; });
  }
}

// A key mask of int64, int32 or bool. Of the last of several sequences it keeps one key.
inline void AddKeyMask(Problem& p, DType type, bool (*keeps)(int64_t j)) {
  p.key_mask = Array(type, p.B * p.T);
  for (int64_t i = 0; i < p.B * p.T; ++i) {
    const bool last = p.B > 1 && i / p.T == p.B - 1;
    const int64_t kept = (last ? i % p.T == 5 : keeps(i % p.T)) ? 1 : 0;
    std::memcpy(p.key_mask.bytes.data() + i * static_cast<int64_t>(SizeOf(type)), &kept, SizeOf(type));
  }
}

inline bool LeftPadded(int64_t j) { return j >= 31; }
inline bool RightPadded(int64_t j) { return j < 217; }
inline bool WithHoles(int64_t j) { return j > 40 && j % 3 != 0 && j < 230; }

// The order in which warps and blocks run: natural, reversed, random.
class Emulated : public ::testing::TestWithParam<uint64_t> {
 protected:
  void SetUp() override {
    gpu::emulation::SetSeed(GetParam());
    Become(kLarge);
  }
};

}  // namespace kvshare::cuda::testing
