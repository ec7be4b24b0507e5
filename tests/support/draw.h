// Random numbers of tests, made from an engine's bits alone. The distributions of <random> take the logarithm of the
// engine's range for each number. clang computes it at run time, and on Arm in quad precision, by software.
#pragma once

#include <cstdint>
#include <random>

namespace kvshare::testing {

// In [0, 1), of 24 bits.
inline float Uniform(std::mt19937& random) { return static_cast<float>(random() >> 8) * 0x1p-24F; }

// Of mean 0 and variance 1, at most 3.45 away from 0: the sum of four bytes, each of variance (256 * 256 - 1) / 12.
inline float Normal(std::mt19937& random) {
  const auto bits = static_cast<uint32_t>(random());
  const uint32_t sum = (bits & 0xFF) + (bits >> 8 & 0xFF) + (bits >> 16 & 0xFF) + (bits >> 24);
  return (static_cast<float>(sum) - 510.0F) / 147.8F;
}

}  // namespace kvshare::testing
