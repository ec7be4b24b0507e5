#include "cuda/emulation/race.h"

#include <dlfcn.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace gpu::emulation::race {
namespace {

constexpr int kNobody = -1;
constexpr int kSeveral = -2;
constexpr int kWarps = 32;

struct Mark {
  int thread = kNobody;
  uint32_t warps = 0;  // a bit each
  int64_t block_epoch = 0;
  int64_t warp_epoch = 0;
  int64_t team_epoch = 0;
  void* pc = nullptr;
};

// Two bytes of shared memory.
struct Cell {
  Mark write;
  Mark read;
};

struct State {
  const char* shared = nullptr;
  size_t bytes = 0;
  int thread = 0;
  int64_t block_epoch = 1;
  int64_t warp_epoch[kWarps] = {};
  int64_t team_epoch[kWarps] = {};  // the same in all warps of a team
  uint32_t team[kWarps] = {};       // of each warp: all that it has met at a team's barrier, a bit each
  std::vector<Cell> cells;
};
thread_local State state;

// Whether a barrier lies between the other's access and now.
bool Ordered(const Mark& other) {
  if (other.thread == kNobody || other.thread == state.thread || other.block_epoch != state.block_epoch) return true;
  const int warp = state.thread / 32;
  if (other.warps == 1U << warp && other.warp_epoch != state.warp_epoch[warp]) return true;
  return (other.warps & ~state.team[warp]) == 0 && other.team_epoch != state.team_epoch[warp];
}

// The address of `pc` in the file of its program, as addr2line -e takes it.
uintptr_t Place(void* pc) {
  Dl_info info = {};
  const bool known = dladdr(pc, &info) != 0;
  return reinterpret_cast<uintptr_t>(pc) - (known ? reinterpret_cast<uintptr_t>(info.dli_fbase) : 0);
}

void Judge(const Mark& other, const char* what, size_t byte, void* pc) {
  if (Ordered(other)) return;
  std::fprintf(
      stderr,
      "gpu emulation: race in shared memory, byte %zu: %s; thread %d (0x%zx) after a thread of warp %d (0x%zx); "
      "needs a barrier between them\n",
      byte, what, state.thread, Place(pc), std::countr_zero(other.warps), Place(other.pc));
  std::abort();
}

}  // namespace

void BeginBlock(const char* shared, size_t bytes) {
  state.shared = shared;
  state.bytes = bytes;
  ++state.block_epoch;
  std::fill_n(state.team, kWarps, 0U);
  std::fill_n(state.team_epoch, kWarps, int64_t{0});
  state.cells.assign(bytes / 2 + 1, {});
}
void EndBlock() { state.bytes = 0; }
void Become(int thread) { state.thread = thread; }
void OrderBlock() { ++state.block_epoch; }
void OrderWarp(int warp) { ++state.warp_epoch[warp]; }
void OrderTeam(int first_warp, int warps) {
  for (int warp = first_warp; warp < first_warp + warps; ++warp) {
    state.team[warp] = ((1U << warps) - 1) << first_warp;
    ++state.team_epoch[warp];
    ++state.warp_epoch[warp];
  }
}

void Access(const void* p, size_t bytes, bool write, void* pc) {
  const auto* const at = static_cast<const char*>(p);
  if (at < state.shared || at >= state.shared + state.bytes) return;
  const auto first = static_cast<size_t>(at - state.shared);
  const int warp = state.thread / 32;
  const Mark now{state.thread, 1U << warp, state.block_epoch, state.warp_epoch[warp], state.team_epoch[warp], pc};
  for (size_t i = first / 2; i < (first + bytes + 1) / 2; ++i) {
    Cell& cell = state.cells[i];
    Judge(cell.write, write ? "write after write" : "read after write", 2 * i, pc);
    if (write) {
      Judge(cell.read, "write after read", 2 * i, pc);
      cell.write = now;
      continue;
    }
    // Readers between two barriers are remembered together.
    Mark read = now;
    if (!Ordered(cell.read)) {
      read.thread = kSeveral;
      read.warps |= cell.read.warps;
    }
    cell.read = read;
  }
}

}  // namespace gpu::emulation::race

// NOLINTBEGIN: the compiler chose these names
#define PC __builtin_return_address(0)
#define ENDS(n)                                                                             \
  void __tsan_read##n(void* p) { gpu::emulation::race::Access(p, n, false, PC); }           \
  void __tsan_write##n(void* p) { gpu::emulation::race::Access(p, n, true, PC); }           \
  void __tsan_unaligned_read##n(void* p) { gpu::emulation::race::Access(p, n, false, PC); } \
  void __tsan_unaligned_write##n(void* p) { gpu::emulation::race::Access(p, n, true, PC); }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* p, size_t n) { gpu::emulation::race::Access(p, n, false, PC); }
void __tsan_write_range(void* p, size_t n) { gpu::emulation::race::Access(p, n, true, PC); }
ENDS(1)
ENDS(2)
ENDS(4)
ENDS(8)
ENDS(16)
}
// NOLINTEND
