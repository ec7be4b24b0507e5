#include "attention/tuning.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace kvshare {
namespace {

Cpu Detect() {
#if defined(__x86_64__)
  unsigned int a = 0, b = 0, c = 0, d = 0;
  const bool amd = __get_cpuid(0, &a, &b, &c, &d) != 0 && b == signature_AMD_ebx && c == signature_AMD_ecx;
  if (!amd || __get_cpuid(1, &a, &b, &c, &d) == 0) return Cpu::kCommon;
  unsigned int family = a >> 8 & 0xF;
  if (family == 0xF) family += a >> 20 & 0xFF;
  return family == 0x19 ? Cpu::kZen4 : family == 0x1A ? Cpu::kZen5 : Cpu::kCommon;
#else
  return Cpu::kCommon;
#endif
}

std::atomic<Cpu>& Known() {
  static std::atomic<Cpu> cpu = Detect();
  return cpu;
}

}  // namespace

Cpu ThisCpu() { return Known().load(std::memory_order_relaxed); }
void SetCpuForTest(Cpu cpu) { Known().store(cpu, std::memory_order_relaxed); }

bool HasFastBF16Dots() {
#if HWY_ARCH_X86
  return __builtin_cpu_is("amd") != 0;
#else
  return true;
#endif
}

bool HasByteDots() {
#if defined(__aarch64__)
  static const bool has = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  return has;
#else
  return false;
#endif
}

}  // namespace kvshare
