#include "cuda/emulation/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
// Declared as in <sanitizer/common_interface_defs.h> and <sanitizer/asan_interface.h>, which not every host has.
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);            // NOLINT
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** old_bottom, size_t* old_size);  // NOLINT
void __asan_unpoison_memory_region(const volatile void* address, size_t size);                      // NOLINT
}
#endif

#if defined(__x86_64__)
// Pushes the registers that the System V ABI preserves, changes stacks, pops them, and returns where that stack left.
extern "C" void kvshare_switch_fiber(void** save, void* load);
asm(R"(
.text
.hidden kvshare_switch_fiber
.globl kvshare_switch_fiber
.type kvshare_switch_fiber,@function
kvshare_switch_fiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size kvshare_switch_fiber,.-kvshare_switch_fiber
)");
#endif

namespace gpu::emulation {

char* AllocateStacks(size_t bytes) {
  void* const stacks = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(stacks);
}

void FreeStacks(char* stacks, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stacks, bytes);  // fibers never return, and who maps these addresses next is not told
#endif
  munmap(stacks, bytes);
}

void PrepareFiber(Fiber& fiber, void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);  // whoever used it before never returned
#endif
#if defined(__x86_64__)
  // Six registers, the entry, and a return address that nobody uses but which aligns the stack.
  constexpr int kWords = 8;
  void* frame[kWords] = {};
  frame[6] = reinterpret_cast<void*>(entry);
  char* const top = fiber.stack + fiber.stack_bytes - sizeof(frame);
  std::memcpy(top, frame, sizeof(frame));
  fiber.stack_pointer = top;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = fiber.stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#endif
}

void EnterFiber([[maybe_unused]] Fiber& starter) {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
  if (starter.stack_bytes == 0) {
    starter.stack = const_cast<char*>(static_cast<const char*>(stack));
    starter.stack_bytes = bytes;
  }
#endif
}

void SwitchFiber(Fiber& from, Fiber& to, [[maybe_unused]] bool ends) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#endif
#if defined(__x86_64__)
  kvshare_switch_fiber(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

}  // namespace gpu::emulation
