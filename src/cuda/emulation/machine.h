// The state of the block that runs on this thread of the host; for the emulator's own files.
#pragma once

#include <vector>

#include "cuda/emulation/emulator.h"
#include "cuda/emulation/fiber.h"
#include "cuda/gpu.h"

namespace gpu::emulation {

enum class Wait : uint8_t { kNothing, kWarp, kTeam, kBlock, kEnded };
enum class WarpOp : uint8_t {
  kSync,
  kShuffle,
  kBallot,
  kMmaHalf,
  kMmaBF16,
  kLoadShared,
  kLdMatrix,
  kLdMatrixTrans,
  kMovMatrix
};

// A CopyAsync under way.
struct Copy {
  void* to;
  const void* from;
  int bytes;
  int group;
};

// The operands and results of one lane in a warp operation.
struct Slot {
  uint32_t in[10];
  uint32_t out[4];
  const void* address;  // LdMatrix: of the row that the lane names; LoadShared: of its piece
  uint8_t row[16];
  int lane;  // Shuffle: whose value
};

struct CudaThread {
  Fiber fiber;
  Wait wait = Wait::kNothing;
  Where where;
  std::vector<Copy> copies;
  int group = 0;  // of the next commit
  Slot slot;
};

struct Warp {
  int arrived = 0;
  WarpOp op = WarpOp::kSync;
  Where where;
};

// Warps that meet at a barrier of their own.
struct Team {
  int arrived = 0;  // threads
  int warps = 0;
  Where where;
};

struct Machine {
  std::vector<CudaThread> threads;
  std::vector<Warp> warps;
  std::vector<Team> teams;
  std::vector<int> next;  // the ring in which threads take turns
  int first = 0;
  int current = 0;
  int at_barrier = 0;
  int ended = 0;
  Where barrier;
  Fiber host;
  Dim block, grid;
  char* shared = nullptr;
  size_t shared_bytes = 0;
  const std::function<void()>* body = nullptr;
};

// The block at hand, and the thread of it that runs.
Machine& TheMachine();
Counters& Count();
CudaThread& Self();

[[noreturn]] void Fail(const char* what, const Where& where);

// The lanes of a warp meet; the last to come calls `Execute` for all, and all go on.
void Meet(WarpOp op, const Where& where);
void Execute(WarpOp op, CudaThread* lanes);

// Returns when the current thread may go on.
void Yield();

}  // namespace gpu::emulation
