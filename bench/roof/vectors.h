// What the roof's loops are made of, under x86's names: a loop is written once, for vectors of a type and a prefix.
#pragma once

#ifdef __aarch64__
#include <arm_neon.h>

inline float32x4_t neon_set1_ps(float x) { return vdupq_n_f32(x); }
inline float32x4_t neon_loadu_ps(const float* p) { return vld1q_f32(p); }
inline float32x4_t neon_add_ps(float32x4_t a, float32x4_t b) { return vaddq_f32(a, b); }
inline float32x4_t neon_fmadd_ps(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
inline float neon_cvtss_f32(float32x4_t v) { return vgetq_lane_f32(v, 0); }

namespace kvshare::roof {
inline constexpr int kFmaSums = 16;  // hide FMA's latency on four pipes
}

#define KVSHARE_TARGET(NAMES)
#define KVSHARE_VECTOR_CONSTRAINT "+w"
#else
#include <immintrin.h>

namespace kvshare::roof {
inline constexpr int kFmaSums = 12;  // hide FMA's latency on two ports
}

#define KVSHARE_TARGET(NAMES) __attribute__((target(NAMES)))
#define KVSHARE_VECTOR_CONSTRAINT "+v"
#endif
