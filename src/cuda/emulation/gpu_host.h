// The host's half of gpu.h: every thread of a block is a fiber, and a wrapper is a call into the emulator, which knows
// the line it came from.
#pragma once

#include <bit>
#include <cmath>
#include <source_location>

#include "core/half.h"
#include "cuda/emulation/emulator.h"

#define GPU_FN inline
#define GPU_KERNEL(threads, blocks) inline void
#define GPU_PARAM const
#define GPU_UNROLL

namespace gpu {

using Where = std::source_location;

inline int Thread() { return emulation::Thread(); }
inline Dim Block() { return emulation::Block(); }
inline Dim Grid() { return emulation::Grid(); }
inline int Threads() { return emulation::Threads(); }
inline char* Shared() { return emulation::Shared(); }
inline void SyncThreads(Where where = Where::current()) { emulation::SyncThreads(where); }
inline void SyncWarp(Where where = Where::current()) { emulation::SyncWarp(where); }
inline void SyncTeam(int team, int warps, Where where = Where::current()) { emulation::SyncTeam(team, warps, where); }
inline float Shuffle(float v, int lane, Where where = Where::current()) { return emulation::Shuffle(v, lane, where); }
inline float ShuffleXor(float v, int mask, Where where = Where::current()) {
  return emulation::Shuffle(v, (emulation::Thread() % 32) ^ mask, where);
}
inline uint32_t Ballot(bool yes, Where where = Where::current()) { return emulation::Ballot(yes, where); }
inline int CountBits(uint32_t bits) { return std::popcount(bits); }
inline uint32_t PickBytes(uint32_t word, uint32_t selector) {
  uint32_t picked = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t digit = selector >> (4 * i) & 7;
    picked |= (digit < 4 ? word >> (8 * digit) & 0xFF : 0) << (8 * i);
  }
  return picked;
}
inline void LoadShared(float (&r)[4], const float* from, Where where = Where::current()) {
  emulation::LoadShared(r, from, where);
}
inline void LdMatrix(uint32_t (&r)[4], const void* row, Where where = Where::current()) {
  emulation::LdMatrix(r, row, false, where);
}
inline void LdMatrixTrans(uint32_t (&r)[4], const void* row, Where where = Where::current()) {
  emulation::LdMatrix(r, row, true, where);
}
inline uint32_t MovMatrixTrans(uint32_t v, Where where = Where::current()) {
  return emulation::MovMatrixTrans(v, where);
}

template <typename T>
void Mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where = Where::current()) {
  emulation::Mma(c, a, b, kIsBF16<T>, where);
}
inline void CopyAsync(void* shared, const void* global, int bytes, Where where = Where::current()) {
  emulation::CopyAsync(shared, global, bytes, where);
}
inline void CopyCommit() { emulation::CopyCommit(); }
template <int N>
void CopyWait() {
  emulation::CopyWait(N);
}

inline float Exp2(float x) { return std::exp2(x); }
inline float Tanh(float x) { return std::tanh(x); }
inline float Rsqrt(float x) { return 1.0F / std::sqrt(x); }
inline float Round(float x) { return std::nearbyint(x); }
inline float FloatOf(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t BitsOf(float x) { return std::bit_cast<uint32_t>(x); }

template <typename T>
uint32_t Pack2(float low, float high) {
  const auto narrow = [](float x) -> uint32_t { return kIsBF16<T> ? kvshare::BF16FromF32(x) : kvshare::F16FromF32(x); };
  return narrow(low) | narrow(high) << 16;
}
template <typename T>
float Widen(uint16_t bits) {
  return kIsBF16<T> ? kvshare::F32FromBF16(bits) : kvshare::F32FromF16(bits);
}
template <typename T>
uint32_t MultiplyAdd2(uint32_t a, uint32_t b, uint32_t c) {
  const auto widen = [](uint32_t bits) { return Widen<T>(static_cast<uint16_t>(bits)); };
  return Pack2<T>(std::fma(widen(a), widen(b), widen(c)), std::fma(widen(a >> 16), widen(b >> 16), widen(c >> 16)));
}

}  // namespace gpu
