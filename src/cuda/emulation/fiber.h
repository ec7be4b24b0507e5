// Stacks that hand the processor to each other: a switch by hand on x86-64 (7 ns), by ucontext elsewhere.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace gpu::emulation {

struct Fiber {
  char* stack = nullptr;  // null: the stack of who started
  size_t stack_bytes = 0;
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context = {};
#endif
  void* fake_stack = nullptr;  // AddressSanitizer's
};

// Memory for stacks, zero until touched. Throws std::bad_alloc.
char* AllocateStacks(size_t bytes);
void FreeStacks(char* stacks, size_t bytes);

// Makes `fiber`, which has a stack, begin in `entry` when it is next switched to. `entry` must not return.
void PrepareFiber(Fiber& fiber, void (*entry)());

// First thing in `entry`; `starter` is who may have no known stack yet.
void EnterFiber(Fiber& starter);

// Leaves `from` for `to`; returns when somebody switches back. A fiber that ends leaves for good.
void SwitchFiber(Fiber& from, Fiber& to, bool ends = false);

}  // namespace gpu::emulation
