// What this machine can do. For each line on stdin, a number of threads, one line with three rates,
//
//   GB/s of plain reads from DRAM in eight streams, GB/s of reads in one, with a prefetch into L2, GFLOP/s of fp32 FMA,
//
// each followed by the involuntary context switches during its measurement. Vectors are chosen at run time, by target
// attributes: AVX-512, else AVX2 and FMA; the program itself is plain x86-64. On Arm they are NEON's.
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "roof/read.h"
#include "roof/vectors.h"

namespace {

#ifndef __aarch64__
using kvshare::roof::IsWide;
#endif
using kvshare::roof::Sum;

constexpr size_t kBufferBytes = size_t{512} << 20;  // far beyond any last-level cache
constexpr size_t kPieceBytes = size_t{16} << 20;    // read in one measurement, the next piece each time
constexpr long kFmaRounds = 500'000;
constexpr int kAccumulators = kvshare::roof::kFmaSums;

// The loop for one kind of vector. The empty asm keeps every FMA where it stands.
#define KVSHARE_MULTIPLY(TARGET, VECTOR, P)                                 \
  constexpr size_t kLanes = sizeof(VECTOR) / sizeof(float);                 \
  KVSHARE_TARGET(TARGET) void Multiply() {                                  \
    VECTOR sums[kAccumulators] = {};                                        \
    const VECTOR a = P##_set1_ps(0.5F), b = P##_set1_ps(0.25F);             \
    for (long round = 0; round < kFmaRounds; ++round) {                     \
      _Pragma("GCC unroll 16") for (size_t k = 0; k < kAccumulators; ++k) { \
        sums[k] = P##_fmadd_ps(a, b, sums[k]);                              \
        __asm__ volatile("" : KVSHARE_VECTOR_CONSTRAINT(sums[k]));          \
      }                                                                     \
    }                                                                       \
  }

#ifdef __aarch64__
KVSHARE_MULTIPLY("", float32x4_t, neon)
size_t Lanes() { return kLanes; }
void Pause() { __asm__ volatile("yield"); }
bool HasFma() { return true; }
#else
namespace avx2 {
KVSHARE_MULTIPLY("avx2,fma", __m256, _mm256)
}
namespace avx512 {
KVSHARE_MULTIPLY("avx512f", __m512, _mm512)
}
size_t Lanes() { return IsWide() ? avx512::kLanes : avx2::kLanes; }
void Multiply() { IsWide() ? avx512::Multiply() : avx2::Multiply(); }
void Pause() { _mm_pause(); }
bool HasFma() { return IsWide() || __builtin_cpu_supports("fma") != 0; }
#endif

// Seconds from a common start until all have finished; work(0) runs on the caller.
double Together(int threads, const std::function<void(int)>& work) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) {
    others.emplace_back([&, t] {
      ++ready;
      while (!go) Pause();
      work(t);
    });
  }
  while (ready < threads - 1) Pause();
  const auto start = std::chrono::steady_clock::now();
  go = true;
  work(0);
  for (std::thread& other : others) other.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Measurement {
  double rate;         // 1e9 a second
  long long switches;  // involuntary
};

Measurement Measure(int threads, double amount, const std::function<void(int)>& work) {
  const auto switches = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<long long>(usage.ru_nivcsw);
  };
  const long long before = switches();
  const double seconds = Together(threads, work);
  return {amount / seconds * 1e-9, switches() - before};
}

}  // namespace

int main() {
  if (!HasFma()) {
    std::fputs("kvshare_roof: this CPU has no FMA\n", stderr);
    return 1;
  }
  const size_t count = kBufferBytes / sizeof(float), piece = kPieceBytes / sizeof(float);
  const std::unique_ptr<float, decltype(&std::free)> buffer(static_cast<float*>(std::aligned_alloc(4096, kBufferBytes)),
                                                            &std::free);
  for (size_t i = 0; i < count; ++i) buffer.get()[i] = 1.0F / static_cast<float>(1 + i % 1024);
  std::atomic<float> keep{0};  // results must be used
  size_t next = 0;
  const auto read = [&](int threads, bool prefetch) {
    const float* data = buffer.get() + next;
    next = (next + piece) % count;
    const size_t part = piece / static_cast<size_t>(threads);
    return Measure(threads, static_cast<double>(kPieceBytes), [&, data, part](int t) {
      const float* mine = data + static_cast<size_t>(t) * part;
      keep = Sum(mine, part, prefetch);
    });
  };
  const auto multiply = [&](int threads) {
    const double operations = 2.0 * kFmaRounds * kAccumulators * static_cast<double>(Lanes()) * threads;
    return Measure(threads, operations, [&](int) { Multiply(); });
  };
  int threads = 0;
  while (std::scanf("%d", &threads) == 1 && threads > 0) {
    for (const Measurement& m : {read(threads, false), read(threads, true), multiply(threads)}) {
      std::printf("%.3f %lld ", m.rate, m.switches);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}
