// Accesses of shared memory that no barrier orders. Kernels are compiled with -fsanitize=thread and linked with race.cc
// in place of libtsan: it has the functions that the compiler calls before each access. Builds without
// KVSHARE_CUDA_RACE have none of it.
#pragma once

#include <cstddef>

namespace gpu::emulation::race {

#if defined(KVSHARE_CUDA_RACE)
void BeginBlock(const char* shared, size_t bytes);
void EndBlock();
void Become(int thread);
void OrderBlock();
void OrderWarp(int warp);
void OrderTeam(int first_warp, int warps);
void Access(const void* p, size_t bytes, bool write, void* pc);
#else
inline void BeginBlock(const char*, size_t) {}
inline void EndBlock() {}
inline void Become(int) {}
inline void OrderBlock() {}
inline void OrderWarp(int) {}
inline void OrderTeam(int, int) {}
inline void Access(const void*, size_t, bool, void*) {}
#endif

}  // namespace gpu::emulation::race
