#include "roof/read.h"

#include "roof/vectors.h"

namespace kvshare::roof {
namespace {

constexpr size_t kAheadBytes = 4096;
constexpr int kSums = 8;

// The loop for one kind of vector. Where it does not prefetch, each sum has a stream of its own.
#define KVSHARE_SUM(NAME, TARGET, VECTOR, P)                                                            \
  KVSHARE_TARGET(TARGET) float NAME(const float* data, size_t count, bool prefetch) {                   \
    constexpr size_t kLanes = sizeof(VECTOR) / sizeof(float);                                           \
    constexpr size_t kStep = kSums * kLanes;                                                            \
    const size_t end = (prefetch ? count : count / kSums) / kStep * kStep;                              \
    const size_t step = prefetch ? kStep : kLanes, apart = prefetch ? kLanes : end;                     \
    VECTOR sums[kSums] = {};                                                                            \
    for (size_t i = 0; i < end; i += step) {                                                            \
      if (prefetch) {                                                                                   \
        const char* ahead = reinterpret_cast<const char*>(data + i) + kAheadBytes;                      \
        for (size_t at = 0; at < kStep * sizeof(float); at += 64) __builtin_prefetch(ahead + at, 0, 2); \
      }                                                                                                 \
      _Pragma("GCC unroll 8") for (size_t k = 0; k < kSums; ++k) {                                      \
        sums[k] = P##_add_ps(sums[k], P##_loadu_ps(data + i + k * apart));                              \
      }                                                                                                 \
    }                                                                                                   \
    for (size_t k = 1; k < kSums; ++k) sums[0] = P##_add_ps(sums[0], sums[k]);                          \
    return P##_cvtss_f32(sums[0]);                                                                      \
  }
#ifdef __aarch64__
KVSHARE_SUM(SumNeon, "", float32x4_t, neon)
#else
KVSHARE_SUM(SumAvx2, "avx2,fma", __m256, _mm256)
KVSHARE_SUM(SumAvx512, "avx512f", __m512, _mm512)
#endif
#undef KVSHARE_SUM

}  // namespace

#ifdef __aarch64__
float Sum(const float* data, size_t count, bool prefetch) { return SumNeon(data, count, prefetch); }
#else
bool IsWide() {
  static const bool wide = __builtin_cpu_supports("avx512f") != 0;
  return wide;
}

float Sum(const float* data, size_t count, bool prefetch) {
  return IsWide() ? SumAvx512(data, count, prefetch) : SumAvx2(data, count, prefetch);
}
#endif

}  // namespace kvshare::roof
