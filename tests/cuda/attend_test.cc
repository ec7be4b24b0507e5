// The kernels against the oracle, at sizes that fill no tile, with NaN wherever nobody may read. Run in three builds:
// plain, with races looked for, with AddressSanitizer.
#include <array>

#include "cuda/emulation/emulator.h"
#include "cuda/emulation/runtime.h"
#include "tests/cuda/device_problem.h"

namespace kvshare::cuda {
namespace {

using testing::DeviceProblem;
using testing::ExpectClose;
using testing::ExpectDeviceMatchesOracle;
using testing::Must;
using testing::Problem;

constexpr DeviceFacts kSmall{8, size_t{99} << 10};   // sm_89
constexpr DeviceFacts kLarge{8, size_t{227} << 10};  // sm_90; few multiprocessors, so that splits have work

double ToleranceOf(DType type) { return type == DType::kBF16 ? 1.6e-2 : type == DType::kF16 ? 2e-3 : 1e-5; }

void Become(const DeviceFacts& device) {
  emulation::SetDevice(device);
  ASSERT_TRUE(PrepareKernels().ok());
}

// Keys and values of sequence b that nobody may read become NaN, or the largest code.
template <typename Unseen>
void PoisonKeys(Problem& p, int64_t b, const Unseen& unseen) {
  const double nan = kvshare::testing::HoldsIntegers(p.kv_type) ? 1e9 : std::numeric_limits<double>::quiet_NaN();
  for (int64_t j = 0; j < p.T; ++j) {
    if (!unseen(j)) continue;
    for (int64_t head = 0; head < p.Hkv; ++head) {
      const int64_t row = p.bsnh ? (b * p.T + j) * p.Hkv + head : (b * p.Hkv + head) * p.T + j;
      for (int64_t d = 0; d < p.D; ++d) p.key.Set(row * p.D + d, nan);
      for (int64_t d = 0; d < p.Dv; ++d) p.value.Set(row * p.Dv + d, nan);
    }
  }
}

void PoisonUnseen(Problem& p) {
  for (int64_t b = 0; b < p.B; ++b) {
    const int64_t first = p.window > 0 ? std::max<int64_t>(0, p.query_position[b] - p.window + 1) : 0;
    PoisonKeys(p, b, [&](int64_t j) { return j < first || j >= p.length[b]; });
  }
}

// The same for a problem with a key mask: keys before the first and after the last that some row sees.
void PoisonUncounted(Problem& p) {
  for (int64_t b = 0; b < p.B; ++b) {
    std::vector<int64_t> counts(p.T);
    const auto kept = [&](int64_t j) { return LoadElement(p.key_mask.data(), p.key_mask.type, b * p.T + j) != 0; };
    for (int64_t j = 0; j < p.T; ++j) counts[j] = (j > 0 ? counts[j - 1] : 0) + (kept(j) ? 1 : 0);
    int64_t first = p.T, last = -1;
    for (int64_t s = 0; s < p.S; ++s)
      for (int64_t j = 0; j < p.T; ++j) {
        const int64_t behind = counts[p.T - p.S + s] - counts[j];
        if (!kept(j) || behind < 0 || (p.window > 0 && behind >= p.window)) continue;
        first = std::min(first, j);
        last = std::max(last, j);
      }
    PoisonKeys(p, b, [&](int64_t j) { return j < first || j > last; });
  }
}

// The order in which warps and blocks run: natural, reversed, random.
class Emulated : public ::testing::TestWithParam<uint64_t> {
 protected:
  void SetUp() override {
    gpu::emulation::SetSeed(GetParam());
    Become(kLarge);
  }
};
INSTANTIATE_TEST_SUITE_P(Seeds, Emulated, ::testing::Values(0, 1, 7));

TEST_P(Emulated, EveryPrefillKernelMatchesTheOracle) {
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

TEST_P(Emulated, EveryDecodeKernelMatchesTheOracle) {
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

TEST_P(Emulated, ScalesThatNoHalfHoldsMatchTheOracle) {
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

TEST_P(Emulated, ANanAmongCodesStaysOne) {
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

TEST_P(Emulated, KeysOfNoScaleAreAlike) {
  Problem p;
  p.type = DType::kF16;
  p.kv_type = DType::kI8;
  p.per_channel = true;
  p.Fill();
  std::fill(p.key_scale.begin(), p.key_scale.end(), 0.0F);
  ExpectDeviceMatchesOracle(p, ToleranceOf(p.type));
}

struct Feature {
  const char* name;
  void (*set)(Problem& p);
};
const Feature kFeatures[] = {
    {"plain", [](Problem&) {}},
    {"window", [](Problem& p) { p.window = 37; }},
    {"window of one key", [](Problem& p) { p.window = 1; }},
    {"keys ahead", [](Problem& p) { p.window = 20, p.ahead = 3; }},
    {"not causal", [](Problem& p) { p.causal = false; }},
    {"softcap", [](Problem& p) { p.softcap = 3; }},
    {"smooth softmax", [](Problem& p) { p.smooth = true; }},
    {"BSNH", [](Problem& p) { p.bsnh = true, p.Hkv = 2, p.Hq = 6; }},
    {"ragged", [](Problem& p) { p.B = 3, p.length = {101, 1, 44}; }},
    {"no keys", [](Problem& p) { p.B = 2, p.length = {0, 17}; }},
    {"row before all keys", [](Problem& p) { p.query_position = {-2}; }},
    {"rows behind all keys", [](Problem& p) { p.window = 30, p.length = {50}, p.query_position = {77}; }},
    {"padded rows", [](Problem& p) { p.B = 2, p.query_length = {2, 0}, p.query_position = {40, 3}; }},
    {"many rows", [](Problem& p) { p.S = 7; }},
    {"one head a group", [](Problem& p) { p.Hkv = 3, p.Hq = 3; }},
    {"rotary", [](Problem& p) { p.rotary_half = p.D / 2; }},
    {"partial interleaved rotary", [](Problem& p) { p.rotary_half = 12, p.interleaved = true; }},
};

TEST_P(Emulated, EveryFeatureMatchesTheOracle) {
  const struct {
    DType type, cache;
    int64_t D;
  } kinds[] = {
      {DType::kF16, DType::kF16, 56},  // less than a kernel's
      {DType::kBF16, DType::kBF16, 64}, {DType::kF16, DType::kI8, 48},
      {DType::kBF16, DType::kI4, 32},   {DType::kF32, DType::kF32, 56},
      {DType::kF32, DType::kI8, 64},    {DType::kF32, DType::kF32, 54},  // of the plain kernel
  };
  for (const Feature& feature : kFeatures)
    for (const auto& [type, cache, D] : kinds) {
      Problem p;
      p.type = type;
      p.kv_type = cache;
      p.per_channel = cache == DType::kI4;
      p.D = D;
      p.S = 3;
      p.T = 101;
      p.Hq = 5;
      feature.set(p);
      p.scale = 1 / std::sqrt(static_cast<float>(p.D));
      p.Fill();
      PoisonUnseen(p);
      SCOPED_TRACE(::testing::Message() << feature.name << " " << NameOf(type) << " " << NameOf(cache));
      ExpectDeviceMatchesOracle(p, ToleranceOf(type));
      if (HasFatalFailure()) return;
    }
}

TEST_P(Emulated, SinksNormsAndMasksMatchTheOracle) {
  for (const auto& [type, D] : {std::pair{DType::kF32, 64}, {DType::kF32, 62}, {DType::kF16, 64}, {DType::kBF16, 64}})
    for (const DType mask : {DType::kBool, DType::kF32, type})
      for (const bool per_head : {false, true}) {
        Problem p;
        p.type = p.kv_type = type;
        p.B = 2;
        p.D = D;
        p.S = 2;
        p.T = 70;
        p.Hq = 6;
        p.Hkv = 2;
        p.Fill();
        p.AddSinks();
        p.AddNorm();
        p.AddBias(mask, per_head);
        SCOPED_TRACE(::testing::Message() << NameOf(type) << " " << NameOf(mask) << " per head " << per_head);
        ExpectDeviceMatchesOracle(p, 2 * ToleranceOf(type));  // normalized queries are rounded before the products
        if (HasFatalFailure()) return;
      }
}

TEST_P(Emulated, PrefillServesFeaturesToo) {
  for (const Feature& feature : kFeatures) {
    Problem p;
    p.type = p.kv_type = DType::kF16;
    p.D = 56;
    p.S = 30;
    p.T = 101;
    p.Hq = 5;
    feature.set(p);
    if (p.S != 30 || p.query_length.size() > 1) p.S = 40, p.query_length.assign(p.query_length.size(), 9);
    p.scale = 1 / std::sqrt(static_cast<float>(p.D));
    for (int64_t& length : p.length) length = std::min(length, p.T);
    p.Fill();
    p.AddSinks();
    if (p.B == 1) p.AddBias(DType::kF16, true);
    SCOPED_TRACE(feature.name);
    if (p.Hkv < 3) {
      EXPECT_EQ(DeviceProblem(p).Plan().kernel->family, KernelFamily::kPrefill);
    }
    ExpectDeviceMatchesOracle(p, ToleranceOf(p.type));
    if (HasFatalFailure()) return;
  }
}

TEST_P(Emulated, SmallDevicesHaveAKernelForEveryHeadSize) {
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

TEST_P(Emulated, EveryMixOfTypesAndEveryCacheMatchesTheOracle) {
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

TEST_P(Emulated, KeysPastTheMaskAreHiddenAndItsFirstColumnIsKept) {
  for (const DType type : {DType::kF16, DType::kF32})
    for (const int64_t first_column : {0, 4}) {
      Problem p;
      p.type = p.kv_type = type;
      p.T = 60;
      p.Fill();
      p.AddBias(DType::kBool, false);
      kvshare::testing::Array truth;
      AttentionCall want = p.Call(truth);
      want.mask.keys = 50;
      want.positions.first_column = Lengths::Same(first_column);
      AttendOracle(want);
      DeviceProblem device(p);
      device.call.mask.keys = 50;
      device.positions.first_column = DeviceNumbers::Same(first_column);
      device.Run();
      device.Get(p);
      ExpectClose(truth, device.output, p.Dv, ToleranceOf(type));
    }
}

// A key mask of int64, int32 or bool. Of the last of several sequences it keeps one key.
void AddKeyMask(Problem& p, DType type, bool (*keeps)(int64_t j)) {
  p.key_mask = kvshare::testing::Array(type, p.B * p.T);
  for (int64_t i = 0; i < p.B * p.T; ++i) {
    const bool last = p.B > 1 && i / p.T == p.B - 1;
    const int64_t kept = (last ? i % p.T == 5 : keeps(i % p.T)) ? 1 : 0;
    std::memcpy(p.key_mask.bytes.data() + i * static_cast<int64_t>(SizeOf(type)), &kept, SizeOf(type));
  }
}

bool LeftPadded(int64_t j) { return j >= 31; }
bool RightPadded(int64_t j) { return j < 217; }
bool WithHoles(int64_t j) { return j > 40 && j % 3 != 0 && j < 230; }

struct KeyMasked {
  KernelFamily family;
  DType type, cache;
  int64_t D, S;
};
const KeyMasked kKeyMasked[] = {
    {KernelFamily::kPlain, DType::kF32, DType::kF32, 14, 3},
    {KernelFamily::kDecodeWarp, DType::kF32, DType::kF32, 128, 3},
    {KernelFamily::kDecodeWarp, DType::kF16, DType::kF16, 64, 1},
    {KernelFamily::kDecodeWarp, DType::kF16, DType::kF16, 512, 2},
    {KernelFamily::kDecodeWarp, DType::kBF16, DType::kI8, 48, 3},
    {KernelFamily::kPrefill, DType::kF16, DType::kF16, 64, 40},
    {KernelFamily::kPrefill, DType::kBF16, DType::kBF16, 512, 24},
};

TEST_P(Emulated, KeyMasksMatchTheOracle) {
  int turn = 0;
  for (const KeyMasked& of : kKeyMasked)
    for (const auto& keeps : {LeftPadded, RightPadded, WithHoles})
      for (const int64_t window : {0, 9}) {
        if (GetParam() != 0 && keeps != WithHoles) continue;  // one order of the warps is enough
        Problem p;
        p.type = of.type;
        p.kv_type = of.cache;
        p.B = 2;
        p.Hq = 4;
        p.Hkv = 2;
        p.S = of.S;
        p.T = 240;
        p.D = of.D;
        p.window = window;
        p.rotary_half = 6;
        p.scale = 1 / std::sqrt(static_cast<float>(p.D));
        p.Fill();
        const DType type = std::array{DType::kI64, DType::kI32, DType::kBool}[turn++ % 3];
        AddKeyMask(p, type, keeps);
        PoisonUncounted(p);
        SCOPED_TRACE(::testing::Message() << NameOf(of.type) << " " << NameOf(of.cache) << " D " << of.D << " S "
                                          << of.S << " window " << window << " " << NameOf(type));
        EXPECT_EQ(DeviceProblem(p).Plan().kernel->family, of.family);
        ExpectDeviceMatchesOracle(p, 2 * ToleranceOf(p.type));  // rotated queries are rounded before the products
        if (HasFatalFailure()) return;
      }
}

TEST_P(Emulated, KeysAheadAndAllKeysOfAKeyMaskMatchTheOracle) {
  for (const bool causal : {false, true}) {
    Problem p;
    p.type = p.kv_type = DType::kF16;
    p.B = 2;
    p.S = 5;
    p.T = 240;
    p.causal = causal;
    p.ahead = 4;
    p.window = 30;
    p.smooth = true;
    p.Fill();
    AddKeyMask(p, DType::kBool, WithHoles);
    p.AddBias(DType::kF16, true);
    ExpectDeviceMatchesOracle(p, ToleranceOf(p.type));
  }
}

TEST_P(Emulated, OnlyKeysBetweenTheFirstAndTheLastThatAKeyMaskShowsAreRead) {
  const std::pair<int64_t, int64_t> seen_in_window[] = {{0, 240 - 31}, {40, 40}};
  for (const auto& [window, seen] : seen_in_window) {
    Problem p;
    p.type = p.kv_type = DType::kF16;
    p.T = 240;
    p.D = 256;
    p.window = window;
    p.Fill();
    AddKeyMask(p, DType::kI64, LeftPadded);
    DeviceProblem device(p);
    gpu::emulation::ResetCounters();
    device.Run();
    EXPECT_EQ(gpu::emulation::Counted().copied_bytes, 2 * seen * BytesOf(p.kv_type, p.D));
  }
}

TEST_P(Emulated, ScoresOfEveryStageMatchTheOracle) {
  for (const ScoreStage stage : {ScoreStage::kRaw, ScoreStage::kSoftcapped, ScoreStage::kMasked, ScoreStage::kWeights})
    for (const bool masked : {false, true}) {
      Problem p;
      p.B = 2;
      p.S = 2;
      p.T = 140;
      p.D = 16;
      p.Hq = 4;
      p.window = 50;
      p.softcap = 4;
      p.length = {140, 77};
      p.show_scores = true;
      p.stage = stage;
      p.smooth = true;
      p.Fill();
      if (stage == ScoreStage::kMasked || stage == ScoreStage::kWeights) PoisonUnseen(p);
      if (masked) p.AddBias(DType::kF32, true);
      SCOPED_TRACE(::testing::Message() << "stage " << static_cast<int>(stage) << " masked " << masked);
      ExpectDeviceMatchesOracle(p, ToleranceOf(p.type));
    }
}

TEST_P(Emulated, AnyCallMatchesTheOracle) {
  std::mt19937 random(static_cast<uint32_t>(GetParam()) + 5);
  const auto pick = [&](std::initializer_list<int64_t> from) { return from.begin()[random() % from.size()]; };
  for (int round = 0; round < kvshare::testing::Rounds(25); ++round) {
    Problem p;
    p.seed = static_cast<uint32_t>(random());
    p.type = std::array{DType::kF16, DType::kF16, DType::kBF16, DType::kF32}[pick({0, 1, 2, 3})];
    p.kv_type = std::array{p.type, p.type, DType::kI8, DType::kI4, DType::kF8E4M3}[pick({0, 1, 2, 3, 4})];
    p.per_channel = pick({0, 1}) == 1;
    p.B = pick({1, 2});
    p.Hkv = pick({1, 2});
    p.Hq = p.Hkv * pick({1, 2, 3, 8});
    p.S = pick({1, 1, 2, 6, 35});
    p.T = p.S + static_cast<int64_t>(random() % 200);
    p.D = pick({8, 40, 64, 96, 128, 200});
    p.window = pick({0, 0, 5, 64});
    p.softcap = pick({0, 0, 5}) == 5 ? 5.0F : 0.0F;
    p.bsnh = pick({0, 1}) == 1;
    for (int64_t b = 0; b < p.B; ++b) p.length.push_back(p.S + static_cast<int64_t>(random() % (p.T - p.S + 1)));
    p.scale = 1 / std::sqrt(static_cast<float>(p.D));
    p.Fill();
    if (pick({0, 0, 0, 1}) == 1) {
      AddKeyMask(p, DType::kI32, WithHoles);
      PoisonUncounted(p);
    } else {
      PoisonUnseen(p);
    }
    if (pick({0, 0, 1}) == 1) p.AddSinks();
    Become(pick({0, 1}) == 1 ? kLarge : kSmall);
    SCOPED_TRACE(::testing::Message() << "round " << round << " " << NameOf(p.type) << " " << NameOf(p.kv_type) << " S "
                                      << p.S << " T " << p.T << " D " << p.D << " Hq " << p.Hq << " window " << p.window
                                      << (p.key_mask.size() > 0 ? " key mask" : ""));
    ExpectDeviceMatchesOracle(p, ToleranceOf(p.type));
    if (HasFatalFailure()) return;
  }
}

// What the kernels were written for: K and V once a KV head, and only what some row sees.
struct Traffic {
  DType type, cache;
  int64_t D, S;  // 8 rows of each token
};
const Traffic kTraffic[] = {
    {DType::kF16, DType::kF16, 64, 1},     {DType::kF16, DType::kF16, 128, 1},     {DType::kF16, DType::kF16, 256, 1},
    {DType::kF16, DType::kF16, 512, 1},    {DType::kF16, DType::kF16, 256, 2},     {DType::kF16, DType::kF16, 512, 2},
    {DType::kF32, DType::kF32, 128, 1},    {DType::kF32, DType::kF32, 512, 1},     {DType::kF32, DType::kF32, 256, 2},
    {DType::kF32, DType::kF32, 512, 2},    {DType::kF16, DType::kI8, 64, 1},       {DType::kF16, DType::kI8, 512, 1},
    {DType::kBF16, DType::kI8, 512, 2},    {DType::kF16, DType::kI4, 64, 1},       {DType::kF16, DType::kI4, 512, 1},
    {DType::kF16, DType::kF8E4M3, 512, 1}, {DType::kBF16, DType::kF8E4M3, 256, 2}, {DType::kF16, DType::kI4, 512, 2},
    {DType::kF32, DType::kF16, 256, 1},    {DType::kF32, DType::kI8, 512, 1},      {DType::kF32, DType::kI4, 128, 1},
};

TEST_P(Emulated, DecodeReadsEverySeenKeyOnceAndSharesItsBanks) {
  for (const Traffic& of : kTraffic)
    for (const int64_t window : {0, 40}) {
      Problem p;
      p.type = of.type;
      p.kv_type = of.cache;
      p.Hkv = 2;
      p.Hq = 16;
      p.S = of.S;
      p.D = of.D;
      p.T = 200;
      p.length = {170};
      p.window = window;
      p.Fill();
      DeviceProblem device(p);
      gpu::emulation::ResetCounters();
      device.Run();
      const gpu::emulation::Counters counted = gpu::emulation::Counted();
      const AttendPlan plan = device.Plan();
      SCOPED_TRACE(::testing::Message() << plan.kernel->name << " window " << window);
      const int64_t seen = window > 0 ? window + of.S - 1 : 170;
      EXPECT_EQ(plan.splits > 1, seen > plan.kernel->keys);  // not below a turn of a block's warps
      EXPECT_EQ(plan.row_tiles, 1);
      EXPECT_EQ(counted.copied_bytes, 2 * p.Hkv * seen * BytesOf(of.cache, of.D));
      EXPECT_EQ(counted.bank_conflicts, 0);
      const int64_t products = 2 * p.Hkv * of.S * (of.D / 16) * ((seen + 15) / 16);
      EXPECT_EQ(counted.mma, of.type == DType::kF32 ? 0 : products);
      EXPECT_EQ(counted.launches, plan.splits > 1 ? 2 : 1);  // splits, and their merge
    }
}

TEST(Tiles, AreNotTakenOfMemoryThatLiesAskew) {
  Become(kLarge);
  Problem p;
  p.type = p.kv_type = DType::kF16;
  p.T = 50;
  p.length = {49};
  p.Fill();
  DeviceProblem device(p);
  kvshare::testing::Array truth;
  AttentionCall want = p.Call(truth);
  for (AttentionCall* call : {&want, &device.call})
    for (HeadsView* view : {&call->key, &call->value}) {
      view->data = At(view->data, view->type, 1);
      --view->tokens;
    }
  AttendOracle(want);
  EXPECT_EQ(device.Plan().kernel->family, KernelFamily::kPlain);
  device.Run();
  device.Get(p);
  ExpectClose(truth, device.output, p.Dv, ToleranceOf(p.type));
}

TEST(Tiles, AreNotTakenOfRowsThatEndInsideAPiece) {
  Become(kLarge);
  constexpr int64_t kWidth = 56, kHeadSize = 54;
  Problem p;
  p.D = kWidth;
  p.T = 50;
  p.Fill();
  for (int64_t i = 0; i < p.T * kWidth; ++i)  // a piece has them, the row has not
    if (i % kWidth >= kHeadSize) p.key.Set(i, std::numeric_limits<double>::quiet_NaN());
  DeviceProblem device(p);
  kvshare::testing::Array truth;
  AttentionCall want = p.Call(truth);
  for (AttentionCall* call : {&want, &device.call}) {
    for (HeadsView* view : {&call->query, &call->key, &call->value}) view->head_size = kHeadSize;
    call->output.head_size = kHeadSize;
  }
  AttendOracle(want);
  EXPECT_EQ(device.Plan().kernel->family, KernelFamily::kPlain);
  device.Run();
  device.Get(p);
  for (int64_t i = 0; i < truth.size(); ++i) {
    if (i % kWidth >= kHeadSize) continue;
    EXPECT_NEAR(device.output.Get(i), truth.Get(i), 1e-5) << i;
  }
}

TEST(Capture, AGraphServesLengthsThatCameLater) {
  Become(kLarge);
  Problem p;
  p.type = p.kv_type = DType::kF16;
  p.B = 2;
  p.T = 300;
  p.length = {300, 300};
  p.Fill();
  DeviceProblem device(p);
  const AttendPlan plan = device.Plan();
  void* const scratch = device.memory.New(plan.scratch_bytes);
  void* const stream = Must(CreateStream());
  ASSERT_TRUE(BeginCapture(stream).ok());
  ASSERT_TRUE(AttendCuda(plan, stream, scratch).ok());
  EXPECT_FALSE(Allocate(16).ok());
  EXPECT_FALSE(Synchronize(stream).ok());
  const std::unique_ptr<Graph> graph = Must(EndCapture(stream));
  for (const std::vector<int64_t>& length : {std::vector<int64_t>{300, 17}, {1, 299}, {160, 161}}) {
    p.length = length;
    p.query_position = {length[0] - 1, length[1] - 1};
    const size_t bytes = length.size() * sizeof(int64_t);
    ASSERT_TRUE(Upload(const_cast<void*>(device.positions.length.data), p.length.data(), bytes).ok());
    ASSERT_TRUE(Upload(const_cast<void*>(device.positions.query_position.data), p.query_position.data(), bytes).ok());
    ASSERT_TRUE(graph->Replay(stream).ok());
    ASSERT_TRUE(Synchronize(stream).ok());
    device.Get(p);
    kvshare::testing::Array truth;
    AttendOracle(p.Call(truth));
    ExpectClose(truth, device.output, p.Dv, ToleranceOf(p.type));
  }
  ASSERT_TRUE(DestroyStream(stream).ok());
}

TEST(Lengths, AreClampedWhereNobodyCouldCheckThem) {
  Become(kLarge);
  for (const DType type : {DType::kF16, DType::kF32}) {
    Problem p;
    p.type = p.kv_type = type;
    p.B = 2;
    p.length = {64, 0};
    p.query_position = {63, -1};
    p.Fill();
    DeviceProblem device(p);
    const std::vector<int64_t> wild = {int64_t{1} << 40, -5};
    device.positions.length.most = int64_t{1} << 50;  // a caller who knows no better
    ASSERT_TRUE(Upload(const_cast<void*>(device.positions.length.data), wild.data(), 16).ok());
    device.Run();
    device.Get(p);
    kvshare::testing::Array truth;
    AttendOracle(p.Call(truth));
    ExpectClose(truth, device.output, p.Dv, ToleranceOf(type));
  }
}

TEST(Refusals, NameWhatNoKernelServes) {
  Become(kSmall);
  Problem p;
  p.type = p.kv_type = DType::kF64;
  p.Fill();
  Result<AttendPlan> plan = PlanAttend(DeviceProblem(p).call, {}, kSmall, "Attention 'a'");
  EXPECT_EQ(plan.status().message(), "Attention 'a': no CUDA kernel for f64; have f32, f16 and bf16");
  Problem wide;
  wide.D = 20000;
  wide.T = 1;
  wide.Fill();
  plan = PlanAttend(DeviceProblem(wide).call, {}, kSmall, "Attention 'a'");
  EXPECT_EQ(plan.status().code(), StatusCode::kRefused);
  EXPECT_EQ(plan.status().message(),
            "Attention 'a': head sizes 20000 and 20000 need 160512 bytes of a block's memory; the device has 101376");
}

}  // namespace
}  // namespace kvshare::cuda
