// Windows, masks, key masks, sinks, norms, rotary embedding, ragged lengths and scores against the oracle.
#include <array>

#include "tests/cuda/emulated.h"

namespace kvshare::cuda {
namespace {

using testing::AddKeyMask;
using testing::DeviceProblem;
using testing::ExpectClose;
using testing::ExpectDeviceMatchesOracle;
using testing::LeftPadded;
using testing::PoisonUncounted;
using testing::PoisonUnseen;
using testing::Problem;
using testing::RightPadded;
using testing::ToleranceOf;
using testing::WithHoles;

class EmulatedFeatures : public testing::Emulated {};
INSTANTIATE_TEST_SUITE_P(Seeds, EmulatedFeatures, ::testing::Values(0, 1, 7));

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

TEST_P(EmulatedFeatures, EveryFeatureMatchesTheOracle) {
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

TEST_P(EmulatedFeatures, SinksNormsAndMasksMatchTheOracle) {
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

TEST_P(EmulatedFeatures, PrefillServesFeaturesToo) {
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

TEST_P(EmulatedFeatures, KeysPastTheMaskAreHiddenAndItsFirstColumnIsKept) {
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

TEST_P(EmulatedFeatures, KeyMasksMatchTheOracle) {
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

TEST_P(EmulatedFeatures, KeysAheadAndAllKeysOfAKeyMaskMatchTheOracle) {
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

TEST_P(EmulatedFeatures, ScoresOfEveryStageMatchTheOracle) {
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

}  // namespace
}  // namespace kvshare::cuda
