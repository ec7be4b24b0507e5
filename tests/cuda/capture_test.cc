// Whatever a call says, the backend's work can be captured in a graph, and the graph serves numbers that lie on the
// device and came later. The emulator refuses allocation, waiting and launches elsewhere while a stream is captured.
#include "cuda/emulation/emulator.h"
#include "cuda/emulation/runtime.h"
#include "tests/cuda/captured.h"
#include "tests/cuda/device_problem.h"

namespace kvshare::cuda {
namespace {

using testing::Arena;
using testing::Array;
using testing::Captured;
using testing::DeviceMemory;
using testing::DeviceProblem;
using testing::ExpectClose;
using testing::Must;
using testing::Problem;
using testing::TheBackend;

// [B] int32 on the host and on the device. As ONNX Runtime's seqlens_k: the counts, less one.
class Counts {
 public:
  Counts(DeviceMemory& memory, size_t B) : host_(B), device_(memory.New(B * sizeof(int32_t))) {}
  void Set(const std::vector<int64_t>& counts, int64_t less = 0) {
    for (size_t b = 0; b < host_.size(); ++b) host_[b] = static_cast<int32_t>(counts.at(b) - less);
    ASSERT_TRUE(Upload(device_, host_.data(), host_.size() * sizeof(int32_t)).ok());
  }
  Lengths Rule(Lengths::Kind kind, Memory where, int64_t bound) const {
    Lengths rule;
    rule.kind = kind;
    rule.data = where == Memory::kHost ? static_cast<const void*>(host_.data()) : device_;
    rule.type = DType::kI32;
    rule.memory = where;
    rule.bound = bound;
    return rule;
  }

 private:
  std::vector<int32_t> host_;
  void* device_;
};

using Batches = std::vector<std::vector<int64_t>>;

// One way through the backend, and the numbers of its replays.
struct Road {
  const char* name;
  KernelFamily family;
  void (*set)(Problem& p);
  Batches lengths = {{100, 9}, {8, 99}, {51, 50}};
  Batches rows = {};                     // that are tokens, of each replay; none: all are
  WindowCache cache = {};                // the keys; lengths then count all tokens
  void (*redraw)(Problem& p) = nullptr;  // of a replay: contents of masks
};

void Redraw(Problem& p, DType type, bool per_head) {
  ++p.seed;
  p.AddBias(type, per_head);
}

void RedrawKeyMask(Problem& p) {
  p.key_mask = Array(DType::kI64, p.B * p.T);
  std::mt19937 random(++p.seed);
  for (int64_t i = 0; i < p.B * p.T; ++i) {
    const int64_t kept = random() % 3 != 0 || i % p.T >= p.T - p.S ? 1 : 0;
    std::memcpy(p.key_mask.bytes.data() + i * static_cast<int64_t>(sizeof kept), &kept, sizeof kept);
  }
}

const Road kRoads[] = {
    {"decode with splits", KernelFamily::kDecodeWarp, [](Problem& p) { p.T = 300; }, {{300, 17}, {1, 299}, {160, 161}}},
    {"decode, D 512, bf16", KernelFamily::kDecodeWarp,
     [](Problem& p) { p.D = 512, p.type = p.kv_type = DType::kBF16; }},
    {"window and sinks", KernelFamily::kDecodeWarp, [](Problem& p) { p.window = 20, p.AddSinks(); }},
    {"a chunk with padded rows",
     KernelFamily::kDecodeWarp,
     [](Problem& p) { p.S = 3; },
     {{100, 9}, {8, 99}, {51, 50}},
     {{3, 1}, {2, 3}, {1, 2}}},
    {"norm and rotary", KernelFamily::kDecodeWarp, [](Problem& p) { p.S = 2, p.rotary_half = 16, p.AddNorm(); }},
    {"norm, rotary, padded rows",
     KernelFamily::kDecodeWarp,
     [](Problem& p) { p.S = 2, p.rotary_half = 16, p.AddNorm(); },
     {{100, 9}, {8, 99}, {51, 50}},
     {{2, 1}, {1, 2}, {2, 2}}},
    {"mask of bool",
     KernelFamily::kDecodeWarp,
     [](Problem& p) { p.AddBias(DType::kBool, false); },
     {{100, 9}, {8, 99}, {51, 50}},
     {},
     {},
     [](Problem& p) { Redraw(p, DType::kBool, false); }},
    {"prefill, padded",
     KernelFamily::kPrefill,
     [](Problem& p) { p.S = 40; },
     {{100, 40}, {41, 99}, {70, 50}},
     {{40, 3}, {1, 40}, {17, 30}}},
    {"prefill, window",
     KernelFamily::kPrefill,
     [](Problem& p) { p.S = 40, p.window = 30; },
     {{100, 40}, {41, 99}, {70, 50}}},
    {"prefill, bias of each head",
     KernelFamily::kPrefill,
     [](Problem& p) { p.S = 40, p.AddBias(DType::kF16, true); },
     {{100, 40}, {41, 99}, {70, 50}},
     {},
     {},
     [](Problem& p) { Redraw(p, DType::kF16, true); }},
    {"plain, f32", KernelFamily::kPlain, [](Problem& p) { p.type = p.kv_type = DType::kF32, p.D = 37, p.S = 2; }},
    {"f32", KernelFamily::kDecodeWarp, [](Problem& p) { p.type = p.kv_type = DType::kF32, p.S = 2; }},
    {"int8", KernelFamily::kDecodeWarp, [](Problem& p) { p.kv_type = DType::kI8; }},
    {"int4, a scale a channel", KernelFamily::kDecodeWarp,
     [](Problem& p) { p.kv_type = DType::kI4, p.per_channel = true, p.rotary_half = 16; }},
    {"f32 over fp8, a scale a channel", KernelFamily::kDecodeWarp,
     [](Problem& p) { p.type = DType::kF32, p.kv_type = DType::kF8E4M3, p.per_channel = true; }},
    {"16 rows of D 512", KernelFamily::kDecodeWarp, [](Problem& p) { p.D = 512, p.S = 2, p.Hq = 16; }},
    {"plain, quantized", KernelFamily::kPlain, [](Problem& p) { p.kv_type = DType::kI8, p.D = 36; }},
    {"plain, weights shown", KernelFamily::kPlain,
     [](Problem& p) { p.show_scores = true, p.stage = ScoreStage::kWeights; }},
    {"key mask",
     KernelFamily::kDecodeWarp,
     [](Problem& p) { p.S = 3, p.window = 9, RedrawKeyMask(p); },
     {{100, 100}, {100, 100}},
     {},
     {},
     RedrawKeyMask},
    {"prefill, key mask",
     KernelFamily::kPrefill,
     [](Problem& p) { p.S = 40, p.rotary_half = 16, RedrawKeyMask(p); },
     {{100, 100}, {100, 100}},
     {},
     {},
     RedrawKeyMask},
    {"plain, key mask",
     KernelFamily::kPlain,
     [](Problem& p) { p.D = 36, p.S = 3, p.window = 9, RedrawKeyMask(p); },
     {{100, 100}, {100, 100}},
     {},
     {},
     RedrawKeyMask},
    {"window-sized cache",
     KernelFamily::kDecodeWarp,
     [](Problem& p) { p.window = 24; },
     {{30, 7}, {1, 5000}, {101, 100}, {160, 33}},
     {},
     {.capacity = 100, .window = 24, .staged = false}},
    {"window-sized cache, rotary",
     KernelFamily::kDecodeWarp,
     [](Problem& p) { p.window = 24, p.rotary_half = 16; },
     {{30, 7}, {1, 99}, {101, 100}},
     {},
     {.capacity = 100, .window = 24, .staged = false}},
};

void PrintTo(const Road& road, std::ostream* out) { *out << road.name; }

// Few multiprocessors, so that splits have work.
void BecomeSmall() {
  emulation::SetDevice({8, size_t{227} << 10});
  ASSERT_TRUE(TheBackend().prepare().ok());
}

class CaptureOf : public ::testing::TestWithParam<Road> {};
INSTANTIATE_TEST_SUITE_P(Roads, CaptureOf, ::testing::ValuesIn(kRoads));

KernelFamily FamilyOf(const char* name) {
  for (const AttendKernel& kernel : AttendKernels())
    if (std::string(kernel.name) == name) return kernel.family;
  ADD_FAILURE() << "no kernel " << name;
  return KernelFamily::kPlain;
}

void SetNaN(void* device, const Array& like) {
  ASSERT_TRUE(Upload(device, std::vector<char>(like.bytes.size(), -1).data(), like.bytes.size()).ok());
}

double ToleranceOf(DType type) { return type == DType::kBF16 ? 1.6e-2 : type == DType::kF16 ? 4e-3 : 1e-5; }

// The problem of a road on the device, with rules in place of positions.
struct RoadProblem {
  const Road& road;
  Problem p;
  std::unique_ptr<DeviceProblem> device;
  std::unique_ptr<Counts> lengths, rows;

  explicit RoadProblem(const Road& of) : road(of) {
    p.type = p.kv_type = DType::kF16;
    p.B = 2;
    p.T = 100;
    p.Hkv = 2;
    road.set(p);
    p.scale = 1 / std::sqrt(static_cast<float>(p.D));
    p.Fill();
    device = std::make_unique<DeviceProblem>(p);
    lengths = std::make_unique<Counts>(device->memory, p.B);
    rows = std::make_unique<Counts>(device->memory, p.B);
    Number(0);
    device->call.positions = Rules(Memory::kDevice);
  }
  Positions Rules(Memory where) const {
    if (p.key_mask.size() > 0) return {};
    Positions rules;
    rules.length = lengths->Rule(Lengths::Kind::kLessOne, where, road.cache ? int64_t{1} << 20 : p.T);
    rules.query_position = Lengths::AtEnd();
    if (!road.rows.empty()) rules.query_length = rows->Rule(Lengths::Kind::kGiven, where, p.S);
    rules.cache = road.cache;
    return rules;
  }
  // The numbers of replay i.
  void Number(size_t i) {
    lengths->Set(road.lengths.at(i), 1);
    if (!road.rows.empty()) rows->Set(road.rows.at(i));
    if (road.redraw == nullptr) return;
    road.redraw(p);
    Upload(device->call.mask.data, p.mask);
    Upload(device->call.key_mask.data, p.key_mask);
  }
  static void Upload(const void* to, const Array& from) {
    if (from.size() == 0) return;
    ASSERT_TRUE(cuda::Upload(const_cast<void*>(to), from.data(), from.bytes.size()).ok());
  }
  void ExpectOracle() {
    device->Get(p);
    const Array scores = p.scores;
    Array truth;
    AttentionCall want = p.Call(truth);
    want.positions = Rules(Memory::kHost);
    AttendOracle(want);
    ExpectClose(truth, device->output, p.Dv, ToleranceOf(p.type));
    ExpectClose(p.scores, scores, p.T, ToleranceOf(p.type), 0, "score");
  }
};

TEST_P(CaptureOf, ReplaysServeNumbersThatCameLater) {
  BecomeSmall();
  RoadProblem problem(GetParam());
  DeviceProblem& device = *problem.device;
  Captured captured([&](Exec& exec) { return TheBackend().attend(device.call, exec); });
  EXPECT_EQ(FamilyOf(captured.kernel()), GetParam().family) << captured.kernel();
  for (size_t i = 0; i < GetParam().lengths.size(); ++i) {
    SCOPED_TRACE(::testing::Message() << "replay " << i);
    problem.Number(i);
    SetNaN(device.call.output.data, device.output);
    if (problem.p.show_scores) SetNaN(device.call.scores.data, problem.p.scores);
    captured.Replay();
    problem.ExpectOracle();
    if (HasFatalFailure()) return;
  }
}

TEST(Capture, KeepsSplitsAndTheirMerge) {
  BecomeSmall();
  RoadProblem problem(kRoads[0]);
  Captured captured([&](Exec& exec) { return TheBackend().attend(problem.device->call, exec); });
  gpu::emulation::ResetCounters();
  captured.Replay();
  EXPECT_EQ(gpu::emulation::Counted().launches, 2);
}

TEST(Capture, NeedsARunBeforeThatTookItsMemory) {
  BecomeSmall();
  RoadProblem problem(kRoads[0]);
  Arena arena;
  WorkspacePool pool;
  void* const stream = Must(CreateStream());
  Exec exec{ParallelFor::Serial(), pool, arena, "test", stream};
  ASSERT_TRUE(BeginCapture(stream).ok());
  EXPECT_EQ(TheBackend().attend(problem.device->call, exec).message(),
            "emulated CUDA: memory is allocated while a stream is captured");
  ASSERT_TRUE(EndCapture(stream).ok());
  ASSERT_TRUE(DestroyStream(stream).ok());
}

TEST(Capture, ClearsOnReplay) {
  DeviceMemory memory;
  const Array ones(DType::kF32, 300);
  void* const data = memory.Copy(ones);
  Captured captured([&](Exec& exec) { return TheBackend().clear(data, ones.bytes.size(), exec); });
  SetNaN(data, ones);
  captured.Replay();
  Array got(ones.type, ones.size());
  ASSERT_TRUE(Download(got.data(), data, got.bytes.size()).ok());
  for (int64_t i = 0; i < got.size(); ++i) ASSERT_EQ(got.Get(i), 0);
}

// Two appends and the attention over what they made: the work of an own layer.
struct Own {
  bool in_place = false;
  WindowCache cache = {};
};
void PrintTo(const Own& own, std::ostream* out) {
  *out << (own.in_place ? "in place" : "own memory") << ", capacity of a window " << own.cache.capacity;
}

struct OwnLayer {
  static constexpr int64_t kB = 2, kHq = 4, kHkv = 2, kD = 64, kCapacity = 50, kPositions = 200;
  enum Tensor {
    kQuery,
    kFreshKey,
    kFreshValue,
    kPastKey,
    kPastValue,
    kPresentKey,
    kPresentValue,
    kOutput,
    kTables,
    kAll
  };

  Own own;
  int64_t S;
  Array host[kAll];
  DeviceMemory memory;
  void* device[kAll] = {};
  Counts lengths{memory, kB};
  std::mt19937 random{3};

  explicit OwnLayer(const Own& o) : own(o), S(o.cache ? 1 : 2) {
    const int64_t cache = kB * kHkv * kCapacity * kD, fresh = kB * S * kHkv * kD;
    const int64_t counts[kAll] = {kB * S * kHq * kD, fresh,          fresh, cache, cache, cache, cache,
                                  kB * S * kHq * kD, kPositions * kD};
    for (int i = 0; i < kAll; ++i) {
      host[i] = Array(i == kTables ? DType::kF32 : DType::kF16, counts[i]);
      host[i].Fill(random, 1);
      device[i] = memory.Copy(host[i]);
    }
  }
  AppendCall Append(bool key, Memory where) {
    const auto at = [&](int i) { return where == Memory::kHost ? host[i].data() : device[i]; };
    const int value = key ? 0 : 1;
    AppendCall call;
    call.fresh = HeadsView::Bsnh(at(kFreshKey + value), DType::kF16, kB, S, kHkv, kD);
    call.present = MutableHeadsView::Bnsh(at(kPresentKey + value), DType::kF16, kB, kHkv, kCapacity, kD);
    const int past = own.in_place ? kPresentKey : kPastKey;
    call.past = HeadsView::Bnsh(at(past + value), DType::kF16, kB, kHkv, kCapacity, kD);
    call.past_length = Lengths::AtEnd();
    call.length = Length(where);
    call.cache = own.cache;
    if (key) call.rotary = Rotary(at(kTables));
    return call;
  }
  AttentionCall Attention(Memory where) {
    const auto at = [&](int i) { return where == Memory::kHost ? host[i].data() : device[i]; };
    AttentionCall call;
    call.query = HeadsView::Bsnh(at(kQuery), DType::kF16, kB, S, kHq, kD);
    call.key = HeadsView::Bnsh(at(kPresentKey), DType::kF16, kB, kHkv, kCapacity, kD);
    call.value = HeadsView::Bnsh(at(kPresentValue), DType::kF16, kB, kHkv, kCapacity, kD);
    call.output = MutableHeadsView::Bsnh(at(kOutput), DType::kF16, kB, S, kHq, kD);
    call.spec.scale = 1 / std::sqrt(static_cast<double>(kD));
    call.spec.window_right = 0;
    if (own.cache) call.spec.window_left = own.cache.window - 1;
    call.positions.length = Length(where);
    call.positions.query_position = Lengths::AtEnd();
    call.positions.cache = own.cache;
    call.rotary = Rotary(at(kTables));
    return call;
  }
  Lengths Length(Memory where) const {
    return lengths.Rule(Lengths::Kind::kLessOne, where, own.cache ? int64_t{1} << 20 : kCapacity);
  }
  static RotaryView Rotary(const void* tables) {
    return {tables, At(tables, DType::kF32, kPositions * kD / 2), DType::kF32, kPositions, kD / 2, false};
  }
  Status Run(Exec& exec) {
    for (const bool key : {true, false})
      KVSHARE_RETURN_IF_ERROR(TheBackend().append(Append(key, Memory::kDevice), exec));
    return TheBackend().attend(Attention(Memory::kDevice), exec);
  }
  // New tokens come.
  void Draw(const std::vector<int64_t>& tokens) {
    for (const int i : {kQuery, kFreshKey, kFreshValue}) {
      host[i].Fill(random, 1);
      ASSERT_TRUE(Upload(device[i], host[i].data(), host[i].bytes.size()).ok());
    }
    SetNaN(device[kOutput], host[kOutput]);
    lengths.Set(tokens, 1);
  }
  void ExpectOracle() {
    for (const bool key : {true, false}) AppendOracle(Append(key, Memory::kHost));
    AttendOracle(Attention(Memory::kHost));
    for (const int i : {kPresentKey, kPresentValue, kOutput}) {
      Array got = host[i];
      ASSERT_TRUE(Download(got.data(), device[i], got.bytes.size()).ok());
      ExpectClose(host[i], got, kD, ToleranceOf(DType::kF16));
    }
  }
};

class CaptureOfOwnLayer : public ::testing::TestWithParam<Own> {};
INSTANTIATE_TEST_SUITE_P(
    Roads, CaptureOfOwnLayer,
    ::testing::Values(Own{}, Own{.in_place = true}, Own{.cache = {.capacity = 50, .window = 24, .staged = false}},
                      Own{.in_place = true, .cache = {.capacity = 50, .window = 24, .staged = false}}));

TEST_P(CaptureOfOwnLayer, ReplaysAppendWhereTheLengthsSay) {
  BecomeSmall();
  OwnLayer layer(GetParam());
  const Batches tokens = layer.own.cache ? Batches{{49, 7}, {50, 8}, {51, 9}, {52, 103}, {1, 78}}
                                         : Batches{{20, 48}, {22, 50}, {2, 30}, {49, 4}};
  layer.Draw(tokens[0]);
  Captured captured([&](Exec& exec) { return layer.Run(exec); });
  layer.ExpectOracle();  // the run before the capture appended
  for (const std::vector<int64_t>& after : tokens) {
    SCOPED_TRACE(::testing::Message() << "tokens " << after[0] << " and " << after[1]);
    layer.Draw(after);
    captured.Replay();
    layer.ExpectOracle();
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace kvshare::cuda
