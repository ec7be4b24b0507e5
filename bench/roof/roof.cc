// What this machine can do: DRAM read bandwidth and fp32 FMA rate. For each line on stdin, a number of threads, one
// line:
//   GB/s of plain reads, GB/s of reads with a prefetch into L2 4 KB ahead, GFLOP/s, involuntary context switches
//   meanwhile
// Vectors are chosen at run time by `target` attributes: AVX-512, else AVX2 and FMA; the program itself is plain
// x86-64.
#include <immintrin.h>
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

namespace {

constexpr size_t kBufferBytes = size_t{512} << 20;  // far beyond any last-level cache
constexpr size_t kPieceBytes = size_t{32} << 20;    // read in one measurement, the next one each time
constexpr size_t kAheadBytes = 4096;
constexpr long kFmaRounds = 2'000'000;
constexpr int kAccumulators = 12;  // hides FMA's latency on two ports

// `Vector` is __m256 or __m512; eight independent sums. Compiled into callers that have the target attribute.
#define KVSHARE_SUM(TARGET, VECTOR, ZERO, LOAD, ADD, STORE)                                                       \
  __attribute__((target(TARGET))) float Sum(const float* data, size_t count, bool prefetch) {                     \
    constexpr size_t kLanes = sizeof(VECTOR) / sizeof(float), kStep = 8 * kLanes;                                 \
    VECTOR sums[8];                                                                                               \
    _Pragma("GCC unroll 8") for (VECTOR & sum : sums) sum = ZERO();                                               \
    for (size_t i = 0; i + kStep <= count; i += kStep) {                                                          \
      const char* ahead = reinterpret_cast<const char*>(data + i) + kAheadBytes;                                  \
      if (prefetch)                                                                                               \
        for (size_t line = 0; line < kStep * sizeof(float); line += 64) _mm_prefetch(ahead + line, _MM_HINT_T1);  \
      _Pragma("GCC unroll 8") for (size_t k = 0; k < 8; ++k) sums[k] = ADD(sums[k], LOAD(data + i + k * kLanes)); \
    }                                                                                                             \
    _Pragma("GCC unroll 8") for (size_t k = 1; k < 8; ++k) sums[0] = ADD(sums[0], sums[k]);                       \
    float lanes[kLanes];                                                                                          \
    STORE(lanes, sums[0]);                                                                                        \
    float total = 0;                                                                                              \
    for (const float lane : lanes) total += lane;                                                                 \
    return total;                                                                                                 \
  }

// The empty asm keeps every accumulator in a register and every FMA where it stands.
#define KVSHARE_FMA(TARGET, VECTOR, SET1, FMADD)                              \
  __attribute__((target(TARGET))) double Multiply() {                         \
    VECTOR sums[kAccumulators];                                               \
    _Pragma("GCC unroll 12") for (VECTOR & sum : sums) sum = SET1(0.0F);      \
    const VECTOR a = SET1(0.5F), b = SET1(0.25F);                             \
    for (long round = 0; round < kFmaRounds; ++round) {                       \
      _Pragma("GCC unroll 12") for (VECTOR & sum : sums) {                    \
        sum = FMADD(a, b, sum);                                               \
        __asm__ volatile("" : "+v"(sum));                                     \
      }                                                                       \
    }                                                                         \
    return 2.0 * kFmaRounds * kAccumulators * sizeof(VECTOR) / sizeof(float); \
  }

namespace avx2 {
KVSHARE_SUM("avx2", __m256, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_add_ps, _mm256_storeu_ps)
KVSHARE_FMA("avx2,fma", __m256, _mm256_set1_ps, _mm256_fmadd_ps)
}  // namespace avx2
namespace avx512 {
KVSHARE_SUM("avx512f", __m512, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_add_ps, _mm512_storeu_ps)
KVSHARE_FMA("avx512f", __m512, _mm512_set1_ps, _mm512_fmadd_ps)
}  // namespace avx512

// Seconds from a common start until all have finished; work(0) runs on the caller.
double Together(int threads, const std::function<void(int)>& work) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) {
    others.emplace_back([&, t] {
      ++ready;
      while (!go) _mm_pause();
      work(t);
    });
  }
  while (ready < threads - 1) _mm_pause();
  const auto start = std::chrono::steady_clock::now();
  go = true;
  work(0);
  for (std::thread& other : others) other.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

long InvoluntarySwitches() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_nivcsw;
}

}  // namespace

int main() {
  const bool wide = __builtin_cpu_supports("avx512f") != 0;
  if (!wide && __builtin_cpu_supports("fma") == 0) {
    std::fputs("kvshare_roof: this CPU has no FMA\n", stderr);
    return 1;
  }
  const size_t count = kBufferBytes / sizeof(float), piece = kPieceBytes / sizeof(float);
  const std::unique_ptr<float, decltype(&std::free)> buffer(static_cast<float*>(std::aligned_alloc(4096, kBufferBytes)),
                                                            &std::free);
  for (size_t i = 0; i < count; ++i) buffer.get()[i] = 1.0F / static_cast<float>(1 + i % 1024);
  std::atomic<double> keep{0};
  size_t next = 0;
  const auto bandwidth = [&](int threads, bool prefetch) {
    const float* data = buffer.get() + next;
    next = (next + piece) % count;
    const size_t part = piece / static_cast<size_t>(threads);
    const double seconds = Together(threads, [&](int t) {
      const float* mine = data + static_cast<size_t>(t) * part;
      keep = wide ? avx512::Sum(mine, part, prefetch) : avx2::Sum(mine, part, prefetch);
    });
    return static_cast<double>(kPieceBytes) / seconds * 1e-9;
  };
  int threads = 0;
  while (std::scanf("%d", &threads) == 1 && threads > 0) {
    const long before = InvoluntarySwitches();
    const double plain = bandwidth(threads, false), prefetched = bandwidth(threads, true);
    double operations = 0;
    const double seconds = Together(threads, [&](int t) {
      const double done = wide ? avx512::Multiply() : avx2::Multiply();
      if (t == 0) operations = done;
    });
    std::printf("%.3f %.3f %.3f %ld\n", plain, prefetched, operations * threads / seconds * 1e-9,
                InvoluntarySwitches() - before);
    std::fflush(stdout);
  }
}
