// Plain reads of memory: the roof of anything that must read it once. Vectors are chosen at run time, by target
// attributes: AVX-512, else AVX2. On Arm they are NEON's.
#pragma once

#include <cstddef>

namespace kvshare::roof {

#ifndef __aarch64__
// Whether the CPU has AVX-512.
bool IsWide();
#endif

// The sum of `count` floats, but for a last few. In eight streams, which the hardware prefetcher follows; with
// `prefetch` in one, with a software prefetch into L2.
float Sum(const float* data, size_t count, bool prefetch);

}  // namespace kvshare::roof
