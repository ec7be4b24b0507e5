// A random attention problem with its own memory: filled in a few lines, run by the kernels or the oracle, compared.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "core/half.h"
#include "kvshare/attend.h"
#include "kvshare/oracle.h"
#include "tests/support/draw.h"

namespace kvshare::testing {

// What KVSHARE_TEST_ROUNDS says: how many times the usual number of problems tests take. 1 where it says nothing.
inline double RoundsFactor() {
  const char* times = std::getenv("KVSHARE_TEST_ROUNDS");
  const double factor = times == nullptr ? 0 : std::atof(times);
  return factor > 0 ? factor : 1;
}

// How many random problems a test draws: `usual`, or KVSHARE_TEST_ROUNDS times as many (`make ci-full`).
inline int Rounds(int usual) { return std::max(1, static_cast<int>(usual * RoundsFactor())); }

// Which combinations of extents a test takes that goes through all of them in nested loops. Where KVSHARE_TEST_ROUNDS
// is below 1, as in an emulator, that share of them, spread over the values of every loop; the summary says how many.
class Combinations {
 public:
  Combinations() = default;
  Combinations(const Combinations&) = delete;
  Combinations& operator=(const Combinations&) = delete;
  ~Combinations() {
    if (taken_ < seen_) std::printf("[ THINNED  ] %d of %d combinations\n", taken_, seen_);
  }

  // Asked once for each.
  bool Take() {
    constexpr double kGoldenRatio = 0.6180339887498949;
    const double at = ++seen_ * kGoldenRatio;  // its fractions are spread evenly, whatever the loops' lengths
    const bool take = at - std::floor(at) < RoundsFactor();
    taken_ += take ? 1 : 0;
    return take;
  }

 private:
  int seen_ = 0, taken_ = 0;
};

// Codes of int8 or int4, which targets may multiply as 16-bit integers.
inline bool HoldsIntegers(DType type) { return type == DType::kI8 || type == DType::kI4; }

// A typed array; every element exactly representable in its type.
struct Array {
  DType type = DType::kF32;
  std::vector<std::byte> bytes;

  Array() = default;
  Array(DType t, int64_t count) : type(t), bytes(BytesOf(t, count)) {}
  int64_t size() const {
    const auto elements = static_cast<int64_t>(bytes.size() / SizeOf(type));
    return type == DType::kI4 ? 2 * elements : elements;
  }
  void* data() { return bytes.data(); }
  const void* data() const { return bytes.data(); }
  double Get(int64_t i) const { return LoadElement(data(), type, i); }
  void Set(int64_t i, double v) { StoreElement(data(), type, i, v); }
  void Fill(std::mt19937& random, double spread) {
    // Codes fill their range.
    if (type == DType::kI8) spread *= 50;
    if (type == DType::kI4) spread *= 4;
    for (int64_t i = 0; i < size(); ++i) Set(i, spread * Normal(random));
  }
};

struct Problem {
  int64_t B = 1, Hq = 8, Hkv = 1, S = 1, T = 64, D = 64, Dv = 0;
  int64_t window = 0;  // 0: full, else ORT's local_window_size
  bool causal = true;
  int64_t ahead = 0;  // keys after its own that a causal query sees
  DType type = DType::kF32;
  DType kv_type = DType::kF32;
  bool bsnh = false;  // K/V as [B, T, Hkv, D]
  float scale = 0.1F;
  float softcap = 0;
  std::vector<int64_t> length;          // default T
  std::vector<int64_t> query_position;  // default length - S
  uint32_t seed = 1;

  bool per_channel = false;           // scales of a quantized cache
  std::vector<int64_t> query_length;  // default: all S

  Array query, key, value, sinks, mask, cos, sin, key_mask, norm;
  std::vector<float> key_scale, value_scale;
  bool mask_per_head = false;
  int64_t rotary_half = 0;
  bool interleaved = false;
  bool smooth = false;
  bool show_scores = false;  // with Call: in `scores`
  ScoreStage stage = ScoreStage::kRaw;
  float outside = -std::numeric_limits<float>::infinity();
  Array scores;
  std::atomic<int64_t> key_rows_read{0};

  Problem() = default;

  // Draws the tensors; call once the extents are set.
  void Fill() {
    std::mt19937 random(seed);
    if (Dv == 0) Dv = D;
    query = Array(type, B * Hq * S * D);
    key = Array(kv_type, B * Hkv * T * RowElements(kv_type, D));
    value = Array(kv_type, B * Hkv * T * RowElements(kv_type, Dv));
    query.Fill(random, 1);
    key.Fill(random, 1);
    value.Fill(random, 1);
    if (IsQuantized(kv_type)) {
      const float one = kv_type == DType::kI8 ? 0.02F : kv_type == DType::kI4 ? 0.25F : 1.0F;
      const auto draw_scale = [&] { return one * (0.5F + 0.5F * Uniform(random)); };
      for (int64_t i = 0; i < (per_channel ? Hkv * D : 1); ++i) key_scale.push_back(draw_scale());
      for (int64_t i = 0; i < (per_channel ? Hkv * Dv : 1); ++i) value_scale.push_back(draw_scale());
    }
    if (length.empty()) length.assign(B, T);
    if (query_position.empty())
      for (int64_t b = 0; b < B; ++b) query_position.push_back(length[b] - S);
    if (rotary_half > 0) {
      cos = Array(type, (T + S + 1) * rotary_half);
      sin = Array(type, (T + S + 1) * rotary_half);
      for (int64_t p = 0; p <= T + S; ++p)
        for (int64_t i = 0; i < rotary_half; ++i) {
          const double angle = p * std::pow(100.0, -static_cast<double>(i) / rotary_half);
          cos.Set(p * rotary_half + i, std::cos(angle));
          sin.Set(p * rotary_half + i, std::sin(angle));
        }
    }
  }
  void AddSinks() {
    std::mt19937 random(seed + 7);
    sinks = Array(type, Hq);
    sinks.Fill(random, 2);
  }
  void AddNorm() {
    std::mt19937 random(seed + 11);
    norm = Array(type, D);
    norm.Fill(random, 1);
  }
  void AddBias(DType mask_type, bool per_head) {
    std::mt19937 random(seed + 9);
    mask_per_head = per_head;
    const int64_t count = B * (per_head ? Hq : 1) * S * T;
    mask = Array(mask_type, count);
    for (int64_t i = 0; i < count; ++i) {
      const bool hidden = Uniform(random) < 0.3F;
      if (mask_type == DType::kBool)
        mask.bytes[i] = static_cast<std::byte>(hidden ? 0 : 1);
      else
        mask.Set(i, hidden ? -std::numeric_limits<double>::infinity() : Normal(random));
    }
  }

  AttentionCall Call(Array& output) {
    AttentionCall call;
    call.query = HeadsView::Bsnh(query.data(), type, B, S, Hq, D);
    call.key =
        bsnh ? HeadsView::Bsnh(key.data(), kv_type, B, T, Hkv, D) : HeadsView::Bnsh(key.data(), kv_type, B, Hkv, T, D);
    call.value = bsnh ? HeadsView::Bsnh(value.data(), kv_type, B, T, Hkv, Dv)
                      : HeadsView::Bnsh(value.data(), kv_type, B, Hkv, T, Dv);
    if (IsQuantized(kv_type)) {
      call.key.quant = {key_scale.data(), per_channel};
      call.value.quant = {value_scale.data(), per_channel};
    }
    output = Array(type, B * S * Hq * Dv);
    for (int64_t i = 0; i < output.size(); ++i) output.Set(i, std::numeric_limits<double>::quiet_NaN());
    call.output = MutableHeadsView::Bsnh(output.data(), type, B, S, Hq, Dv);
    call.spec.scale = scale;
    call.spec.softcap = softcap;
    call.spec.window_left = window > 0 ? window - 1 : kUnlimited;
    call.spec.window_right = causal ? ahead : kUnlimited;
    call.spec.smooth_softmax = smooth;
    if (sinks.size() > 0) {
      call.spec.head_sink = sinks.data();
      call.spec.head_sink_type = sinks.type;
    }
    call.positions = {length.data(), query_position.data(), query_length.empty() ? nullptr : query_length.data()};
    if (norm.size() > 0) call.norm = {norm.data(), norm.type, 1e-5F};
    if (mask.size() > 0) {
      const int64_t heads = mask_per_head ? Hq : 1;
      call.mask = {mask.data(), mask.type, heads * S * T, mask_per_head ? S * T : 0, T, 1, T};
    }
    if (key_mask.size() > 0) call.key_mask = {key_mask.data(), key_mask.type, T};
    if (rotary_half > 0) call.rotary = {cos.data(), sin.data(), type, T + S + 1, rotary_half, interleaved};
    if (show_scores) {
      scores = Array(type, B * Hq * S * T);
      for (int64_t i = 0; i < scores.size(); ++i) scores.Set(i, std::numeric_limits<double>::quiet_NaN());
      call.scores = {scores.data(), type, stage, T, outside};
    }
    call.key_rows_read = &key_rows_read;
    return call;
  }
};

// In every row of `row` elements the largest difference must stay under `tolerance` times the row's largest magnitude,
// or times `least` if that is more; infinities must be equal.
inline void ExpectClose(const Array& truth, const Array& got, int64_t row, double tolerance, double least = 0,
                        const char* what = "element") {
  ASSERT_EQ(truth.size(), got.size());
  for (int64_t first = 0; first < truth.size(); first += row) {
    double largest = least;
    for (int64_t i = first; i < first + row; ++i)
      if (std::isfinite(truth.Get(i))) largest = std::max(largest, std::fabs(truth.Get(i)));
    for (int64_t i = first; i < first + row; ++i)
      ASSERT_TRUE(truth.Get(i) == got.Get(i) || std::fabs(truth.Get(i) - got.Get(i)) <= tolerance * largest)
          << what << " " << i - first << " of row " << first / row << ", whose largest is " << largest << ": oracle "
          << truth.Get(i) << ", kernel " << got.Get(i);
  }
}

// What the kernels make of `p`.
inline Array Attended(Problem& p) {
  Array out;
  const AttentionCall call = p.Call(out);
  WorkspacePool pool;
  const Status status = Attend(call, ParallelFor::Serial(), pool);
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

// Runs the kernels and the oracle.
inline void ExpectMatchesOracle(Problem& p, double tolerance) {
  Array truth;
  AttentionCall want_call = p.Call(truth);
  ASSERT_TRUE(CheckAttention(want_call, "test").ok()) << CheckAttention(want_call, "test").message();
  AttendOracle(want_call);
  const Array want_scores = p.scores;
  const Array got = Attended(p);
  ExpectClose(truth, got, p.Dv, tolerance);
  // What a score is off by is what its weight is off by, in proportion: small ones are no better known than 1.
  ExpectClose(want_scores, p.scores, p.T, tolerance, p.stage == ScoreStage::kWeights ? 0 : 1, "score");
}

}  // namespace kvshare::testing
