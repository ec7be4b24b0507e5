#include "attention/tuning.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
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

// The registers are large, so Linux gives them to a process that asks.
bool AskForMatrixProducts() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr unsigned kTiles = 1U << 24, kBytes = 1U << 25;  // CPUID's leaf 7: AMX_TILE, AMX_INT8
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kTiles) != 0 && (d & kBytes) != 0 &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool MatrixProductsAreThere() {
  static const bool there = AskForMatrixProducts();
  return there;
}

std::atomic<bool>& UsesMatrixProducts() {
  static std::atomic<bool> uses = MatrixProductsAreThere();
  return uses;
}

}  // namespace

bool HasMatrixProducts() { return UsesMatrixProducts().load(std::memory_order_relaxed); }
void UseMatrixProductsForTest(bool use) { UsesMatrixProducts() = use && MatrixProductsAreThere(); }

Cpu ThisCpu() { return Known().load(std::memory_order_relaxed); }
void SetCpuForTest(Cpu cpu) { Known().store(cpu, std::memory_order_relaxed); }

bool HasFastBF16Dots() {
#if defined(__x86_64__)
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
