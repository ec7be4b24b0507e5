#include "cuda/emulation/race.h"

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace gpu::emulation::race {
namespace {

constexpr int kNobody = -1;
constexpr int kSeveral = -2;  // lanes of one warp
constexpr int kWarps = 32;

struct Mark {
  int thread = kNobody;
  int warp = kNobody;
  int64_t block_epoch = 0;
  int64_t warp_epoch = 0;
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
  std::vector<Cell> cells;
};
thread_local State state;

// Whether a barrier lies between the other's access and now.
bool Ordered(const Mark& other) {
  if (other.thread == kNobody || other.thread == state.thread || other.block_epoch != state.block_epoch) return true;
  const int warp = state.thread / 32;
  return other.warp == warp && other.warp_epoch != state.warp_epoch[warp];
}

// As addr2line -e PROGRAM takes it.
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
      byte, what, state.thread, Place(pc), other.warp, Place(other.pc));
  std::abort();
}

}  // namespace

void BeginBlock(const char* shared, size_t bytes) {
  state.shared = shared;
  state.bytes = bytes;
  ++state.block_epoch;
  state.cells.assign(bytes / 2 + 1, {});
}
void EndBlock() { state.bytes = 0; }
void Become(int thread) { state.thread = thread; }
void OrderBlock() { ++state.block_epoch; }
void OrderWarp(int warp) { ++state.warp_epoch[warp]; }

void Access(const void* p, size_t bytes, bool write, void* pc) {
  const auto* const at = static_cast<const char*>(p);
  if (at < state.shared || at >= state.shared + state.bytes) return;
  const auto first = static_cast<size_t>(at - state.shared);
  const int warp = state.thread / 32;
  Mark now{state.thread, warp, state.block_epoch, state.warp_epoch[warp], pc};
  for (size_t i = first / 2; i < (first + bytes + 1) / 2; ++i) {
    Cell& cell = state.cells[i];
    Judge(cell.write, write ? "write after write" : "read after write", 2 * i, pc);
    if (write) {
      Judge(cell.read, "write after read", 2 * i, pc);
      cell.write = now;
      continue;
    }
    // Readers between two barriers are remembered together: those of one warp, or of none where they are of several.
    Mark read = now;
    if (!Ordered(cell.read)) {
      read.thread = kSeveral;
      if (cell.read.warp != warp) read.warp = kNobody;
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
