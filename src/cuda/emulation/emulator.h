// A block of CUDA threads on one thread of the host. Each CUDA thread is a fiber that runs until it must wait for its
// warp or its block; so a launch is deterministic, and what the hardware leaves undefined becomes an error:
//
//   lanes that meet at different warp operations, a block in which nobody can go on     abort, with file, line and lane
//   shared memory that nobody wrote, or whose asynchronous copy was not waited for       NaN
//   a copy that arrives in a buffer still read                                           NaN for its readers
//   pieces of LdMatrix, LoadShared and CopyAsync that are misaligned or outside          abort
//   accesses of shared memory that no barrier orders                                     race.h, in builds of their own
//
// Blocks run one after the other; nothing is said about memory between blocks, time, or the rounding of tensor cores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>

namespace gpu {
struct Dim;
}

namespace gpu::emulation {

using Where = std::source_location;

// What a launch did. `bank_conflicts` counts the extra turns of LdMatrix and LoadShared: 0 where the pieces of eight
// lanes lie in eight groups of banks, or are the same.
struct Counters {
  int64_t launches = 0;
  int64_t blocks = 0;
  int64_t mma = 0;
  int64_t ldmatrix = 0;
  int64_t bank_conflicts = 0;
  int64_t copied_bytes = 0;  // read by CopyAsync
  int64_t barriers = 0;      // of blocks
};

// The order in which warps and blocks run: 0 natural, 1 reversed, others random.
void SetSeed(uint64_t seed);

// Since the last reset.
const Counters& Counted();
void ResetCounters();

// Runs body() as every thread of every block of the grid. Aborts where the kernel breaks a rule.
void RunGrid(Dim grid, int threads, size_t shared_bytes, const std::function<void()>& body);

// What gpu_host.h calls, inside a body.
int Thread();
int Threads();
Dim Block();
Dim Grid();
char* Shared();
void SyncThreads(Where where);
void SyncWarp(Where where);
void SyncTeam(int team, int warps, Where where);
float Shuffle(float v, int lane, Where where);
uint32_t Ballot(bool yes, Where where);
void LoadShared(float (&r)[4], const float* from, Where where);
void LdMatrix(uint32_t (&r)[4], const void* row, bool trans, Where where);
uint32_t MovMatrixTrans(uint32_t v, Where where);
void Mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool bf16, Where where);
void CopyAsync(void* shared, const void* global, int bytes, Where where);
void CopyCommit();
void CopyWait(int newest);

}  // namespace gpu::emulation
