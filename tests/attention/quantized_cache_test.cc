// Decode over int8, int4 and fp8 caches, row by row, against attention over code * scale in double precision: whatever
// the distribution of weights (a sink whose value is nothing) and of channels (outliers) is.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "kvshare/attend.h"
#include "tests/support/every_target.h"
#include "tests/support/problem.h"

namespace kvshare {
namespace {

using testing::Array;
using testing::Problem;

// What a problem is drawn from. One query token; the sink is one key that takes `sink_weight` of every row's weight.
struct Draw {
  double sink_weight = 0;
  int64_t sink_key = 0;
  bool sink_has_value = false;
  double query_size = 1;          // of elements; scores differ in proportion
  double query_outlier = 1;       // times one query channel is larger
  double key_outlier = 1;         // times its scale is; per channel only
  bool constant_outlier = false;  // all keys have the same code in that channel
  double value_outlier = 1;
  bool needle = false;  // one key alone has a value, and it is not one of large weight
};

constexpr int64_t kOutlierChannel = 5;
constexpr int64_t kValueOutlierChannel = 3;

double Largest(DType kv_type) { return kv_type == DType::kI8 ? 127 : kv_type == DType::kI4 ? 7 : 448; }

// In which order channels are added up: f32 may be right by luck in one of them.
enum class Order { kForward, kBackward, kInLanes };

// Attention of one row in the precision of F, code * scale dequantized.
template <typename F>
struct Evaluation {
  std::vector<F> key, value;  // [Hkv][T][D]

  explicit Evaluation(const Problem& p) {
    const auto fill = [&](const Array& codes, const std::vector<float>& scale, int64_t D, std::vector<F>& to) {
      const int64_t row = RowElements(p.kv_type, D);
      to.resize(p.Hkv * p.T * D);
      for (int64_t h = 0; h < p.Hkv; ++h)
        for (int64_t j = 0; j < p.T; ++j)
          for (int64_t d = 0; d < D; ++d)
            to[(h * p.T + j) * D + d] = static_cast<F>(codes.Get((h * p.T + j) * row + d)) *
                                        static_cast<F>(scale[p.per_channel ? h * D + d : 0]);
    };
    fill(p.key, p.key_scale, p.D, key);
    fill(p.value, p.value_scale, p.Dv, value);
  }

  F Dot(const F* a, const F* b, int64_t D, Order order) const {
    F lanes[8] = {};
    for (int64_t i = 0; i < D; ++i) {
      const int64_t d = order == Order::kBackward ? D - 1 - i : i;
      lanes[order == Order::kInLanes ? d % 8 : 0] += a[d] * b[d];
    }
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
  }

  std::vector<F> Scores(const Problem& p, int64_t head, Order order = Order::kForward) const {
    const F* k = key.data() + head / (p.Hq / p.Hkv) * p.T * p.D;
    std::vector<F> query(p.D), score(p.T);
    for (int64_t d = 0; d < p.D; ++d) query[d] = static_cast<F>(p.query.Get(head * p.D + d));
    for (int64_t j = 0; j < p.T; ++j) score[j] = Dot(query.data(), k + j * p.D, p.D, order) * static_cast<F>(p.scale);
    return score;
  }

  std::vector<F> Row(const Problem& p, int64_t head, Order order = Order::kForward) const {
    std::vector<F> weight = Scores(p, head, order);
    const F max = *std::max_element(weight.begin(), weight.end());
    F sum = 0;
    for (F& w : weight) sum += w = std::exp(w - max);
    const F* v = value.data() + head / (p.Hq / p.Hkv) * p.T * p.Dv;
    std::vector<F> out(p.Dv, 0);
    for (int64_t j = 0; j < p.T; ++j)
      for (int64_t d = 0; d < p.Dv; ++d) out[d] += weight[j] * v[j * p.Dv + d];
    for (F& o : out) o /= sum;
    return out;
  }
};

void SetRow(Array& codes, int64_t row, int64_t elements, double code) {
  for (int64_t d = 0; d < elements; ++d) codes.Set(row * elements + d, code);
}

// Makes key `draw.sink_key` of every head point along a direction that queries take part in, so far that it takes its
// weight.
void AddSink(Problem& p, const Draw& draw) {
  const int64_t row = RowElements(p.kv_type, p.D);
  const auto sign = [](int64_t d) { return d % 3 == 0 ? -1.0 : 1.0; };
  const auto is_outlier = [&](int64_t d) { return d == kOutlierChannel && draw.query_outlier * draw.key_outlier > 1; };
  for (int64_t h = 0; h < p.Hkv; ++h)
    for (int64_t d = 0; d < p.D; ++d)
      if (!is_outlier(d)) p.key.Set((h * p.T + draw.sink_key) * row + d, sign(d) * Largest(p.kv_type));
  for (int step = 0; step < 4; ++step) {
    const Evaluation<double> exact(p);
    for (int64_t head = 0; head < p.Hq; ++head) {
      const std::vector<double> score = exact.Scores(p, head);
      double max = -std::numeric_limits<double>::infinity(), sum = 0;
      for (int64_t j = 0; j < p.T; ++j)
        if (j != draw.sink_key) max = std::max(max, score[j]);
      for (int64_t j = 0; j < p.T; ++j)
        if (j != draw.sink_key) sum += std::exp(score[j] - max);
      const double want = max + std::log(sum) + std::log(draw.sink_weight / (1 - draw.sink_weight));
      const double* sink = exact.key.data() + (head / (p.Hq / p.Hkv) * p.T + draw.sink_key) * p.D;
      double length = 0;
      for (int64_t d = 0; d < p.D; ++d) length += is_outlier(d) ? 0 : sink[d] * sink[d];
      const double along = (want - score[draw.sink_key]) / (p.scale * length);
      for (int64_t d = 0; d < p.D; ++d)
        if (!is_outlier(d)) p.query.Set(head * p.D + d, p.query.Get(head * p.D + d) + along * sink[d]);
    }
  }
  if (!draw.sink_has_value)
    for (int64_t h = 0; h < p.Hkv; ++h) SetRow(p.value, h * p.T + draw.sink_key, RowElements(p.kv_type, p.Dv), 0);
}

void FillFrom(Problem& p, const Draw& draw) {
  p.scale = 1 / std::sqrt(static_cast<float>(p.D));
  p.per_channel = draw.key_outlier > 1 || draw.value_outlier > 1;
  p.Fill();
  std::mt19937 random(p.seed + 1);
  const auto uniform = [&] { return 2.0 * testing::Uniform(random) - 1; };
  const int64_t row = RowElements(p.kv_type, p.D), value_row = RowElements(p.kv_type, p.Dv);
  const double largest = Largest(p.kv_type);
  for (int64_t i = 0; i < p.key.size(); ++i) p.key.Set(i, uniform() * largest);
  for (int64_t i = 0; i < p.value.size(); ++i) p.value.Set(i, uniform() * largest);
  if (draw.constant_outlier)
    for (int64_t j = 0; j < p.Hkv * p.T; ++j) p.key.Set(j * row + kOutlierChannel, largest);
  if (draw.needle)
    for (int64_t j = 0; j < p.Hkv * p.T; ++j)
      if (j % p.T != p.T / 3) SetRow(p.value, j, value_row, 0);
  // Values of about 1, whatever the codes.
  for (float& scale : p.key_scale) scale = 1.7F / static_cast<float>(largest);
  for (float& scale : p.value_scale) scale = 1.7F / static_cast<float>(largest);
  for (int64_t h = 0; p.per_channel && h < p.Hkv; ++h) {
    p.key_scale[h * p.D + kOutlierChannel] *= static_cast<float>(draw.key_outlier);
    p.value_scale[h * p.Dv + kValueOutlierChannel] *= static_cast<float>(draw.value_outlier);
  }
  for (int64_t i = 0; i < p.query.size(); ++i) p.query.Set(i, p.query.Get(i) * draw.query_size);
  for (int64_t head = 0; head < p.Hq; ++head) {
    const int64_t i = head * p.D + kOutlierChannel;
    p.query.Set(i, p.query.Get(i) * draw.query_outlier);
  }
  if (draw.sink_weight > 0) AddSink(p, draw);
}

// Half a unit in the last place of a number of `type` as large as x; 0 for fp32.
double HalfUlp(DType type, double x) {
  if (type == DType::kF32) return 0;
  const int exponent = std::max(std::ilogb(std::max(std::fabs(x), 1e-30)), type == DType::kF16 ? -14 : -126);
  return std::ldexp(1.0, exponent - (type == DType::kF16 ? 11 : 8));
}

// Every row within max(1e-4, twice the error of an f32 evaluation) of its largest element, all in codes, so that an
// outlier channel of V hides no other.
void ExpectRowsRight(Problem& p) {
  const Evaluation<double> exact(p);
  const Evaluation<float> single(p);
  std::vector<std::vector<double>> want, allowed;
  for (int64_t head = 0; head < p.Hq; ++head) {
    want.push_back(exact.Row(p, head));
    const int64_t channel0 = p.per_channel ? head / (p.Hq / p.Hkv) * p.Dv : 0;
    const auto scale = [&](int64_t d) { return p.value_scale[p.per_channel ? channel0 + d : 0]; };
    double largest = 0, error = 0;
    for (int64_t d = 0; d < p.Dv; ++d) largest = std::max(largest, std::fabs(want.back()[d]) / scale(d));
    for (const Order order : {Order::kForward, Order::kBackward, Order::kInLanes}) {
      const std::vector<float> f32 = single.Row(p, head, order);
      for (int64_t d = 0; d < p.Dv; ++d) error = std::max(error, std::fabs(f32[d] - want.back()[d]) / scale(d));
    }
    const double codes = std::max(1e-4 * largest, 2 * error);
    std::vector<double> row;
    for (int64_t d = 0; d < p.Dv; ++d)
      row.push_back(codes * scale(d) + HalfUlp(p.type, std::fabs(want.back()[d]) + codes * scale(d)));
    allowed.push_back(row);
  }
  for (const int64_t target : testing::TargetsHere()) {
    hwy::SetSupportedTargetsForTest(target);
    const Array got = testing::Attended(p);
    hwy::SetSupportedTargetsForTest(testing::TargetBitsHere());
    for (int64_t head = 0; head < p.Hq; ++head)
      for (int64_t d = 0; d < p.Dv; ++d)
        ASSERT_LE(std::fabs(got.Get(head * p.Dv + d) - want[head][d]), allowed[head][d])
            << hwy::TargetName(target) << " head " << head << " channel " << d << ": exact " << want[head][d]
            << ", kernel " << got.Get(head * p.Dv + d);
  }
}

TEST(QuantizedCache, DecodeIsRightInEveryRowForAnyDistribution) {
  std::mt19937 random(20261129);
  const auto pick = [&](auto... of) {
    const double from[] = {static_cast<double>(of)...};
    return from[random() % sizeof...(of)];
  };
  for (int round = 0; round < testing::Rounds(160); ++round) {
    Problem p;
    p.seed = random();
    p.kv_type = round % 5 < 2 ? DType::kI8 : round % 5 < 4 ? DType::kI4 : DType::kF8E4M3;
    p.type = static_cast<DType>(pick(0, 0, 0, 1, 2));
    // A long cache of wide heads takes seconds in double precision.
    p.T = round % 40 == 0 ? 32768 : static_cast<int64_t>(pick(64, 65, 200, 513, 1024, 2048));
    p.D = p.T > 4096 ? 64 : static_cast<int64_t>(pick(33, 64, 80, 128, 256, 512));
    p.Dv = static_cast<int64_t>(pick(p.D, p.D, 48));
    p.Hkv = static_cast<int64_t>(pick(1, 2));
    p.Hq = p.Hkv * static_cast<int64_t>(pick(1, 2, 3, 4, 8, 8, 16));
    Draw draw;
    draw.sink_weight = pick(0, 0.9, 0.99, 0.999, 0.9999, 0.99999);
    draw.sink_key = static_cast<int64_t>(pick(0, 1, p.T / 2, p.T - 1, random() % p.T));
    draw.sink_has_value = pick(0, 0, 1) == 1;
    draw.query_size = pick(0.3, 1, 3);
    draw.query_outlier = pick(1, 1, 30, 1000);
    draw.key_outlier = pick(1, 1, 30, 1000);
    draw.constant_outlier = pick(0, 1, 1) == 1;
    draw.value_outlier = pick(1, 1, 1000);
    draw.needle = pick(0, 0, 0, 1) == 1;
    FillFrom(p, draw);
    SCOPED_TRACE(::testing::Message() << "round " << round << ": " << NameOf(p.type) << "/" << NameOf(p.kv_type)
                                      << " T " << p.T << " D " << p.D << " Dv " << p.Dv << " heads " << p.Hq << "/"
                                      << p.Hkv << " sink " << draw.sink_weight << " at " << draw.sink_key
                                      << " query size " << draw.query_size << " outliers " << draw.query_outlier << " "
                                      << draw.key_outlier << " " << draw.value_outlier << " constant "
                                      << draw.constant_outlier << " needle " << draw.needle);
    ExpectRowsRight(p);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace kvshare
