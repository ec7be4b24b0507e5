// Appends on the device against the oracle: own memory and in place, window-sized caches, quantized ones.
#include "cuda/emulation/emulator.h"
#include "cuda/emulation/runtime.h"
#include "tests/cuda/device_problem.h"

namespace kvshare::cuda {
namespace {

using testing::Array;
using testing::DeviceMemory;
using testing::Must;

struct Case {
  int64_t B = 2, H = 2, S = 3, D = 24, capacity = 13;
  DType type = DType::kF16;  // of the new rows
  DType cache = DType::kF16;
  bool in_place = false;
  bool per_channel = false;
  bool norm = false;
  int64_t half = 0;
  bool interleaved = false;
  std::vector<int64_t> past = {5, 9};
  std::vector<int64_t> length;  // default past + S - skip
  std::vector<int64_t> skip;
  std::vector<int64_t> wild_past, wild_length;  // what the device holds instead, and clamps to those
};

Array Random(DType type, int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  Array array(type, count);
  array.Fill(random, 1);
  return array;
}

void ExpectMatchesOracle(Case c, double tolerance) {
  const int64_t row = RowElements(c.cache, c.D);
  Array fresh = Random(c.type, c.B * c.S * c.H * c.D, 1), past = Random(c.cache, c.B * c.H * c.capacity * row, 2);
  Array weight = Random(DType::kF32, c.D, 3), tables = Random(DType::kF32, 2 * 40 * std::max<int64_t>(c.half, 1), 4);
  const std::vector<float> scales(c.H * c.D, 0.03F);
  if (c.length.empty())
    for (int64_t b = 0; b < c.B; ++b) c.length.push_back(c.past[b] + c.S - (c.skip.empty() ? 0 : c.skip[b]));

  AppendCall call;
  call.fresh = HeadsView::Bsnh(fresh.data(), c.type, c.B, c.S, c.H, c.D);
  call.past = HeadsView::Bnsh(past.data(), c.cache, c.B, c.H, c.capacity, c.D);
  Array want = past;
  if (!c.in_place) std::fill(want.bytes.begin(), want.bytes.end(), std::byte{0xFF});
  call.present = MutableHeadsView::Bnsh(want.data(), c.cache, c.B, c.H, c.capacity, c.D);
  if (c.in_place) call.past.data = want.data();
  if (IsQuantized(c.cache)) call.past.quant = call.present.quant = {scales.data(), c.per_channel};
  if (c.norm) call.norm = {weight.data(), DType::kF32, 1e-5F};
  if (c.half > 0) {
    call.rotary = {tables.data(), nullptr, DType::kF32, 40, c.half, c.interleaved};
    call.rotary.sin = At(static_cast<const void*>(tables.data()), DType::kF32, 40 * c.half);
  }
  Array got = want;
  AppendCall on_device = call;
  call.past_length = c.past.data();
  call.length = c.length.data();
  call.skip = c.skip.empty() ? nullptr : c.skip.data();
  const Status checked = CheckAppend(call, "test");
  ASSERT_TRUE(checked.ok()) << checked.message();
  AppendOracle(call);

  DeviceMemory memory;
  on_device.fresh.data = memory.Copy(fresh);
  on_device.present.data = memory.Copy(got);
  on_device.past.data = c.in_place ? on_device.present.data : memory.Copy(past);
  on_device.past.quant.scale = on_device.present.quant.scale = IsQuantized(c.cache) ? memory.Copy(scales) : nullptr;
  if (c.norm) on_device.norm.weight = memory.Copy(weight);
  if (c.half > 0) {
    on_device.rotary.cos = memory.Copy(tables);
    on_device.rotary.sin = At(on_device.rotary.cos, DType::kF32, 40 * c.half);
  }
  AppendPositions positions;
  positions.past_length = memory.Numbers(c.wild_past.empty() ? c.past : c.wild_past, 0, 0, c.capacity);
  positions.rotary_start = positions.past_length;
  positions.length = memory.Numbers(c.wild_length.empty() ? c.length : c.wild_length, 0, 0, c.capacity);
  positions.skip = memory.Numbers(c.skip, 0, 0, c.capacity + c.S);
  const Status status = AppendCuda(on_device, positions, Must(CurrentDevice()), nullptr, "test");
  ASSERT_TRUE(status.ok()) << status.message();
  ASSERT_TRUE(Synchronize(nullptr).ok());
  ASSERT_TRUE(Download(got.data(), on_device.present.data, got.bytes.size()).ok());
  for (int64_t i = 0; i < want.size(); ++i) {
    if (std::isnan(want.Get(i)) && std::isnan(got.Get(i))) continue;
    if (c.cache == DType::kI4 && c.D % 2 == 1 && i % row == c.D) continue;  // fills the byte
    ASSERT_NEAR(want.Get(i), got.Get(i), tolerance * std::max(1.0, std::fabs(want.Get(i)))) << "element " << i;
  }
}

class Append : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    gpu::emulation::SetSeed(3);
    emulation::SetDevice({8, size_t{99} << 10});
    ASSERT_TRUE(PrepareKernels().ok());
  }
  Case Made() const {
    Case made;
    made.in_place = GetParam();
    return made;
  }
};
INSTANTIATE_TEST_SUITE_P(InPlace, Append, ::testing::Values(false, true));

TEST_P(Append, EveryPairOfTypesMatchesTheOracle) {
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16})
    for (const DType cache : {DType::kF32, DType::kF16, DType::kBF16}) {
      Case c = Made();
      c.type = type;
      c.cache = cache;
      SCOPED_TRACE(::testing::Message() << NameOf(type) << " to " << NameOf(cache));
      ExpectMatchesOracle(c, 0);
    }
}

TEST_P(Append, NormalizedAndRotatedKeysMatchTheOracle) {
  for (const bool norm : {false, true})
    for (const bool interleaved : {false, true})
      for (const int64_t half : {5, 12}) {
        Case c = Made();
        c.type = c.cache = DType::kF32;
        c.norm = norm;
        c.interleaved = interleaved;
        c.half = half;
        ExpectMatchesOracle(c, 1e-5);
      }
}

TEST_P(Append, QuantizedCachesMatchTheOracle) {
  for (const DType cache : {DType::kI8, DType::kI4, DType::kF8E4M3})
    for (const bool per_channel : {false, true})
      for (const int64_t D : {24, 33}) {
        Case c = Made();
        c.cache = cache;
        c.per_channel = per_channel;
        c.D = D;
        SCOPED_TRACE(::testing::Message() << NameOf(cache) << " D " << D);
        ExpectMatchesOracle(c, 0);
      }
}

TEST_P(Append, WindowSizedCachesDropTheirFirstRows) {
  for (const DType cache : {DType::kF16, DType::kI4}) {
    Case c = Made();
    c.cache = cache;
    c.past = {13, 6};
    c.skip = {7, 0};
    ExpectMatchesOracle(c, 0);
    c.skip = {14, 6};  // a new row, too
    ExpectMatchesOracle(c, 0);
  }
}

TEST_P(Append, LengthsAreClampedWhereNobodyCouldCheckThem) {
  Case c = Made();
  c.past = {13, 0};
  c.length = {13, 3};
  c.wild_past = {int64_t{1} << 40, -5};
  c.wild_length = {int64_t{1} << 40, 12};  // more than there are
  ExpectMatchesOracle(c, 0);
}

TEST_P(Append, HeadsThatFitNoBlockAreRefused) {
  std::vector<float> row(30000);
  AppendCall call;
  call.fresh = HeadsView::Bnsh(row.data(), DType::kF32, 1, 1, 1, 30000);
  call.present = MutableHeadsView::Bnsh(row.data(), DType::kF32, 1, 1, 1, 30000);
  const Status status = AppendCuda(call, {}, Must(CurrentDevice()), nullptr, "GroupQueryAttention 'a'");
  EXPECT_EQ(status.message(),
            "GroupQueryAttention 'a': head size 30000 needs 480000 bytes of a block's memory; the device has 101376");
}

TEST_P(Append, PaddedRowsAreNotAppended) {
  Case c = Made();
  c.length = {6, 9};
  ExpectMatchesOracle(c, 0);
}

}  // namespace
}  // namespace kvshare::cuda
