// Every kernel and every mix of types against the oracle, at sizes that fill no tile, with NaN wherever nobody may
// read. Like the other tests of attend here it runs in three builds: plain, with races looked for, with
// AddressSanitizer.
#include "tests/cuda/emulated.h"

namespace kvshare::cuda {
namespace {

using testing::Become;
using testing::DeviceProblem;
using testing::ExpectDeviceMatchesOracle;
using testing::kSmall;
using testing::PoisonUnseen;
using testing::Problem;
using testing::ToleranceOf;

class EmulatedKernels : public testing::Emulated {};
INSTANTIATE_TEST_SUITE_P(Seeds, EmulatedKernels, ::testing::Values(0, 1, 7));

TEST_P(EmulatedKernels, EveryPrefillKernelMatchesTheOracle) {
  for (const AttendKernel& kernel : AttendKernels()) {
    if (kernel.family != KernelFamily::kPrefill) continue;
    for (const int64_t window : {0, 30}) {
      Problem p;
      p.type = p.kv_type = kernel.element;
      p.D = kernel.D;
      p.S = 27;
      p.T = 43;  // with a window, the last tile of keys is the first one's size
      p.Hq = 3;
      p.window = window;
      p.scale = 1 / std::sqrt(static_cast<float>(p.D));
      p.Fill();
      PoisonUnseen(p);
      EXPECT_STREQ(DeviceProblem(p).Plan().kernel->name, kernel.name);
      gpu::emulation::ResetCounters();
      ExpectDeviceMatchesOracle(p, ToleranceOf(p.type));
      EXPECT_EQ(gpu::emulation::Counted().bank_conflicts, 0);
    }
  }
}

TEST_P(EmulatedKernels, EveryDecodeKernelMatchesTheOracle) {
  for (const AttendKernel& kernel : AttendKernels()) {
    if (kernel.family != KernelFamily::kDecodeWarp) continue;
    // Codes are the same numbers for all queries: of those in bf16 one order is enough, of those in f32 two.
    if (kernel.cache != kernel.element && kernel.element == DType::kBF16 && GetParam() != 0) continue;
    if (kernel.cache != kernel.element && kernel.element == DType::kF32 && GetParam() == 1) continue;
    Become({1, kernel.shared_bytes});  // one split
    Problem p;
    p.type = kernel.element;
    p.kv_type = kernel.cache;
    p.per_channel = kernel.D != 128;
    p.D = kernel.D;
    p.S = kernel.rows / 8;
    p.T = 3 * kernel.keys + 21;  // so many turns that every ring is refilled, and a broken tile
    p.Hq = 7;
    p.scale = 1 / std::sqrt(static_cast<float>(p.D));
    p.Fill();
    PoisonUnseen(p);
    EXPECT_STREQ(DeviceProblem(p).Plan().kernel->name, kernel.name);
    gpu::emulation::ResetCounters();
    ExpectDeviceMatchesOracle(p, ToleranceOf(p.type));
    EXPECT_EQ(gpu::emulation::Counted().bank_conflicts, 0) << kernel.name;
    if (HasFatalFailure()) return;
  }
}

TEST_P(EmulatedKernels, ScalesThatNoHalfHoldsMatchTheOracle) {
  for (const float factor : {1e-9F, 1e6F})
    for (const bool per_channel : {false, true}) {
      Problem p;
      p.type = DType::kF16;
      p.kv_type = DType::kI8;
      p.per_channel = per_channel;
      p.Hkv = 2;
      p.T = 70;
      p.scale = 0.1F / factor;
      p.Fill();
      for (float& scale : p.key_scale) scale *= factor;
      EXPECT_EQ(DeviceProblem(p).Plan().kernel->family, KernelFamily::kDecodeWarp);
      ExpectDeviceMatchesOracle(p, ToleranceOf(p.type));
    }
}

TEST_P(EmulatedKernels, ANanAmongCodesStaysOne) {
  Problem p;
  p.type = DType::kF16;
  p.kv_type = DType::kF8E4M3;
  p.Fill();
  constexpr int kChannel = 5;
  p.value.Set(20 * p.D + kChannel, std::numeric_limits<double>::quiet_NaN());
  DeviceProblem device(p);
  EXPECT_EQ(device.Plan().kernel->family, KernelFamily::kDecodeWarp);
  device.Run();
  device.Get(p);
  for (int64_t i = 0; i < p.Hq * p.D; ++i) EXPECT_EQ(std::isnan(device.output.Get(i)), i % p.D == kChannel) << i;
}

TEST_P(EmulatedKernels, KeysOfNoScaleAreAlike) {
  Problem p;
  p.type = DType::kF16;
  p.kv_type = DType::kI8;
  p.per_channel = true;
  p.Fill();
  std::fill(p.key_scale.begin(), p.key_scale.end(), 0.0F);
  ExpectDeviceMatchesOracle(p, ToleranceOf(p.type));
}

TEST_P(EmulatedKernels, SmallDevicesHaveAKernelForEveryHeadSize) {
  Become(kSmall);
  const std::pair<DType, DType> kinds[] = {
      {DType::kF16, DType::kF16},    {DType::kF32, DType::kF32},  {DType::kF16, DType::kI8}, {DType::kBF16, DType::kI4},
      {DType::kF16, DType::kF8E4M3}, {DType::kF32, DType::kBF16}, {DType::kF32, DType::kI8}};
  for (const auto& [type, cache] : kinds)
    for (const int64_t D : {64, 128, 256, 512}) {
      Problem p;
      p.type = type;
      p.kv_type = cache;
      p.D = D;
      p.T = 50;
      p.scale = 1 / std::sqrt(static_cast<float>(D));
      p.Fill();
      EXPECT_EQ(DeviceProblem(p).Plan().kernel->family, KernelFamily::kDecodeWarp) << NameOf(cache) << " " << D;
      const int rows = cache == DType::kF16 && D < 512 ? 16 : 8;  // the rings of 8 rows are too large
      EXPECT_EQ(DeviceProblem(p).Plan().kernel->rows, rows) << NameOf(cache) << " " << D;
      ExpectDeviceMatchesOracle(p, ToleranceOf(p.type));
    }
}

TEST_P(EmulatedKernels, EveryMixOfTypesAndEveryCacheMatchesTheOracle) {
  for (const DType type : {DType::kF32, DType::kF16})
    for (const DType cache : {DType::kF32, DType::kBF16, DType::kI8, DType::kI4, DType::kF8E4M3}) {
      Problem p;
      p.type = type;
      p.kv_type = cache;
      p.D = 37;
      p.Dv = 21;
      p.S = 2;
      p.T = 45;
      p.Hq = 4;
      p.Hkv = 2;
      p.per_channel = type == DType::kF32;
      p.Fill();
      SCOPED_TRACE(::testing::Message() << NameOf(type) << " " << NameOf(cache));
      ExpectDeviceMatchesOracle(p, ToleranceOf(type));
    }
}

}  // namespace
}  // namespace kvshare::cuda
