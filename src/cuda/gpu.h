// One set of wrappers around what a GPU has and C++ lacks, with two implementations: inline PTX here, and fibers in
// emulation/gpu_host.h. Kernels include nothing else of either world. Elements travel as bits, so neither side needs
// cuda_fp16.h.
//
//   Thread Block Grid Shared           indices, and the block's dynamic shared memory (16-byte aligned)
//   SyncThreads SyncWarp               barriers; what was written before is seen behind
//   SyncTeam(team, warps)              a barrier of warps [team * warps, (team + 1) * warps); up to 15 teams a block
//   Shuffle ShuffleXor                 all 32 lanes take part
//   Ballot CountBits                   which lanes say yes, as a bit each; all 32 take part
//   LoadShared                         16 aligned bytes of shared memory; all 32 lanes take part
//   LdMatrix LdMatrixTrans             four 8x8 matrices of 16 bits; lane i names row i % 8 of matrix i / 8
//   MovMatrixTrans                     an 8x8 matrix of 16 bits, transposed between the lanes
//   Mma<T>(c, a, b)                    c[16x8] += a[16x16] * b[16x8], f32 sums
//   CopyAsync CopyCommit CopyWait<N>   16 bytes to shared memory, of which the first `bytes` are read and the rest is
//                                      zero; visible to the lane itself once at most N newer groups are under way
//   Exp2 Tanh Rsqrt Round              Exp2 and Rsqrt may be approximations
//   Pack2<T> Narrow<T> Widen<T>        f32 to 16 bits, nearest, ties to even; and back
//   MultiplyAdd2<T>                    a * b + c of two 16-bit elements each, rounded once
//   PickBytes                          four bytes of a word: each digit of the selector names one, 4 is zero
//   WidenE4M3<T>                       two of the four fp8 codes of a word as two elements
#pragma once

#include <cstdint>
#include <cstring>

namespace gpu {

// Tags of 16-bit elements.
struct Half {};
struct BF16 {};
template <typename T>
inline constexpr bool kIsBF16 = false;
template <>
inline constexpr bool kIsBF16<BF16> = true;

struct Dim {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

}  // namespace gpu

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#define GPU_FN __device__ __forceinline__
#define GPU_KERNEL(threads, blocks) __global__ __launch_bounds__(threads, blocks) void
#define GPU_PARAM const __grid_constant__
#define GPU_UNROLL _Pragma("unroll")

namespace gpu {

GPU_FN int Thread() { return static_cast<int>(threadIdx.x); }
GPU_FN Dim Block() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
GPU_FN Dim Grid() { return {gridDim.x, gridDim.y, gridDim.z}; }
GPU_FN int Threads() { return static_cast<int>(blockDim.x); }
GPU_FN char* Shared() {
  extern __shared__ __align__(1024) char shared_memory[];
  return shared_memory;
}
GPU_FN void SyncThreads() { __syncthreads(); }
GPU_FN void SyncWarp() { __syncwarp(); }
GPU_FN void SyncTeam(int team, int warps) {
  asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "r"(warps * 32) : "memory");  // 0 is SyncThreads
}
GPU_FN float Shuffle(float v, int lane) { return __shfl_sync(~0U, v, lane); }
GPU_FN float ShuffleXor(float v, int mask) { return __shfl_xor_sync(~0U, v, mask); }
GPU_FN uint32_t Ballot(bool yes) { return __ballot_sync(~0U, yes); }
GPU_FN int CountBits(uint32_t bits) { return __popc(bits); }
GPU_FN uint32_t PickBytes(uint32_t word, uint32_t selector) { return __byte_perm(word, 0, selector); }

GPU_FN void LoadShared(float (&r)[4], const float* from) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  r[0] = four.x;
  r[1] = four.y;
  r[2] = four.z;
  r[3] = four.w;
}

GPU_FN uint32_t SharedAddress(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
GPU_FN void LdMatrix(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}
GPU_FN void LdMatrixTrans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}
GPU_FN uint32_t MovMatrixTrans(uint32_t v) {
  uint32_t r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}

template <typename T>
GPU_FN void Mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
GPU_FN void Mma<Half>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
GPU_FN void Mma<BF16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

GPU_FN void CopyAsync(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)), "l"(global),
               "r"(bytes)
               : "memory");
}
GPU_FN void CopyCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
GPU_FN void CopyWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

GPU_FN float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
GPU_FN float Tanh(float x) { return tanhf(x); }
GPU_FN float Rsqrt(float x) { return rsqrtf(x); }
GPU_FN float Round(float x) { return rintf(x); }
GPU_FN float FloatOf(uint32_t bits) { return __uint_as_float(bits); }
GPU_FN uint32_t BitsOf(float x) { return __float_as_uint(x); }

template <typename T>
GPU_FN uint32_t Pack2(float low, float high);
template <>
GPU_FN uint32_t Pack2<Half>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <>
GPU_FN uint32_t Pack2<BF16>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <typename T>
GPU_FN uint32_t MultiplyAdd2(uint32_t a, uint32_t b, uint32_t c);
template <>
GPU_FN uint32_t MultiplyAdd2<Half>(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
template <>
GPU_FN uint32_t MultiplyAdd2<BF16>(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
template <typename T>
GPU_FN float Widen(uint16_t bits);
template <>
GPU_FN float Widen<Half>(uint16_t bits) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(bits));
  return r;
}
template <>
GPU_FN float Widen<BF16>(uint16_t bits) {
  return FloatOf(static_cast<uint32_t>(bits) << 16);
}

}  // namespace gpu
#else
#include "cuda/emulation/gpu_host.h"
#endif

namespace gpu {

GPU_FN float Infinity() { return FloatOf(0x7F800000); }
GPU_FN bool IsNan(float x) { return x != x; }
template <typename T>
GPU_FN T Min(T a, T b) {
  return a < b ? a : b;
}
template <typename T>
GPU_FN T Max(T a, T b) {
  return a > b ? a : b;
}
template <typename T>
GPU_FN uint16_t Narrow(float x) {
  return static_cast<uint16_t>(Pack2<T>(x, 0.0F));
}

// Where no instruction does it, bits are moved, and a product mends the exponent: that of a code counts from 7, that of
// an element from 15 or 127. -0 is added, or NaN to what means NaN.
template <typename T>
GPU_FN uint32_t WidenE4M3(uint32_t word, int first, int second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint32_t two;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(two) : "h"(static_cast<uint16_t>(PickBytes(word, first | second << 4))));
  if constexpr (kIsBF16<T>)
    two = Pack2<T>(Widen<Half>(static_cast<uint16_t>(two)), Widen<Half>(static_cast<uint16_t>(two >> 16)));
  return two;
#else
  constexpr uint32_t kPower = kIsBF16<T> ? 0x7B807B80 : 0x5C005C00;  // 2^120, 2^8
  constexpr int kShift = kIsBF16<T> ? 4 : 1;
  const uint32_t codes = PickBytes(word, 0x0404 | first << 4 | second << 12);
  const uint32_t magnitudes = codes & 0x7F007F00;
  const uint32_t nans = (magnitudes + 0x01000100) >> 15 & 0x00010001;
  return (codes & 0x80008000) | MultiplyAdd2<T>(magnitudes >> kShift, kPower, 0x80008000 - nans);
#endif
}

}  // namespace gpu
