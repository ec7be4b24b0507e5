// The truth: every formula of AttentionSpec written once, in double precision, one row at a time. Shares no code with
// the kernels but the conversion of a single element, and where sequences stand.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/half.h"
#include "core/place_sequences.h"
#include "kvshare/oracle.h"

namespace kvshare {
namespace {

constexpr double kHidden = -std::numeric_limits<double>::infinity();

// Channel d of a token, whatever its type.
double Load(const HeadsView& view, int64_t b, int64_t head, int64_t token, int64_t d) {
  const double stored = LoadElement(view.data, view.type, view.Offset(b, head, token) + d);
  return IsQuantized(view.type) ? stored * view.quant.At(head, view.head_size, d) : stored;
}

// The head's D channels of a token, normalized where there are weights, then rotated for `position` where there are
// tables.
std::vector<double> LoadRow(const HeadsView& view, int64_t b, int64_t head, int64_t token, const NormView& norm,
                            const RotaryView& rotary, int64_t position) {
  const int64_t D = view.head_size;
  std::vector<double> row(D);
  for (int64_t d = 0; d < D; ++d) row[d] = Load(view, b, head, token, d);
  if (norm) {
    double squares = 0;
    for (const double x : row) squares += x * x;
    const double factor = 1 / std::sqrt(squares / static_cast<double>(D) + norm.epsilon);
    for (int64_t d = 0; d < D; ++d) row[d] *= factor * LoadElement(norm.weight, norm.type, d);
  }
  if (!rotary) return row;
  const std::vector<double> x = row;
  for (int64_t i = 0; i < rotary.half; ++i) {
    const int64_t first = rotary.interleaved ? 2 * i : i;
    const int64_t second = rotary.interleaved ? 2 * i + 1 : i + rotary.half;
    const double cos = LoadElement(rotary.cos, rotary.type, position * rotary.half + i);
    const double sin = LoadElement(rotary.sin, rotary.type, position * rotary.half + i);
    row[first] = x[first] * cos - x[second] * sin;
    row[second] = x[second] * cos + x[first] * sin;
  }
  return row;
}

// Which keys query row s of sequence b may look at, before masks: both are positions on one axis.
struct Axis {
  std::vector<int64_t> key;   // position of key j
  std::vector<bool> present;  // false: padding, or past the length
  int64_t query = 0;          // position of the row
};

Axis AxisOf(const AttentionCall& call, int64_t b, int64_t s) {
  const int64_t T = call.key.tokens;
  Axis axis{std::vector<int64_t>(T), std::vector<bool>(T), 0};
  if (call.key_mask) {
    int64_t ones = 0;
    for (int64_t j = 0; j < T; ++j) {
      axis.present[j] = LoadElement(call.key_mask.data, call.key_mask.type, b * call.key_mask.batch_stride + j) != 0;
      ones += axis.present[j] ? 1 : 0;
      axis.key[j] = ones;
    }
    axis.query = axis.key[T - call.query.tokens + s];
    return axis;
  }
  const SequencePlace place = PlaceOf(call, b);
  for (int64_t j = 0; j < T; ++j) {
    axis.key[j] = j;
    axis.present[j] = j < place.length && s < place.query_length;
  }
  axis.query = place.query_position + s;
  return axis;
}

bool Visible(const AttentionSpec& spec, int64_t query, int64_t key) {
  if (spec.window_left != kUnlimited && query - key > spec.window_left) return false;
  return spec.window_right == kUnlimited || key - query <= spec.window_right;
}

// What the mask adds to a score: 0, a bias, or -inf.
double MaskAt(const MaskView& mask, int64_t b, int64_t head, int64_t s, int64_t column) {
  if (!mask) return 0;
  if (column >= mask.keys) return kHidden;
  const double value =
      LoadElement(mask.data, mask.type,
                  b * mask.batch_stride + head * mask.head_stride + s * mask.query_stride + column * mask.key_stride);
  if (mask.type == DType::kBool) return value != 0 ? 0 : kHidden;
  return value;
}

void AttendRow(const AttentionCall& call, const Axis& axis, int64_t b, int64_t head, int64_t s) {
  const AttentionSpec& spec = call.spec;
  const int64_t kv_head = head / (call.query.heads / call.key.heads);
  const SequencePlace place = PlaceOf(call, b);
  const std::vector<double> query = LoadRow(call.query, b, head, s, call.norm, call.rotary, place.RotaryOf(call, b, s));

  const MutableScoresView& scores = call.scores;
  const int64_t scores_row = ((b * call.query.heads + head) * call.query.tokens + s) * scores.keys;
  const int64_t first_column = place.first_column;
  const auto show = [&](ScoreStage stage, int64_t column, double value) {
    if (scores && scores.stage == stage && column < scores.keys)
      StoreElement(scores.data, scores.type, scores_row + column, value);
  };
  for (int64_t column = 0; column < scores.keys; ++column) {
    show(ScoreStage::kMasked, column, scores.outside);
    show(ScoreStage::kWeights, column, 0);
  }
  std::vector<double> score(call.key.tokens, kHidden);
  double max = kHidden;
  const bool sink = spec.smooth_softmax || spec.head_sink != nullptr;
  const double sink_score = spec.head_sink != nullptr ? LoadElement(spec.head_sink, spec.head_sink_type, head) : 0;
  if (sink) max = sink_score;
  for (int64_t j = 0; j < call.key.tokens; ++j) {
    const bool within = axis.present[j] && Visible(spec, axis.query, axis.key[j]);
    const double bias = within ? MaskAt(call.mask, b, head, s, first_column + j) : kHidden;
    if (within) show(ScoreStage::kMasked, first_column + j, bias);
    if (bias == kHidden && !(scores && scores.OfEveryKey())) continue;
    double dot = 0;
    for (int64_t d = 0; d < call.key.head_size; ++d) dot += query[d] * Load(call.key, b, kv_head, j, d);
    double x = dot * spec.scale;
    show(ScoreStage::kRaw, first_column + j, x);
    if (spec.softcap > 0) x = spec.softcap * std::tanh(x / spec.softcap);
    show(ScoreStage::kSoftcapped, first_column + j, x);
    if (bias == kHidden) continue;
    score[j] = x + bias;
    show(ScoreStage::kMasked, first_column + j, score[j]);
    max = std::fmax(max, score[j]);
  }

  double sum = sink ? std::exp(sink_score - max) : 0;
  std::vector<double> out(call.value.head_size, 0);
  for (int64_t j = 0; j < call.key.tokens; ++j) {
    if (score[j] == kHidden) continue;
    const double weight = std::exp(score[j] - max);
    sum += weight;
    for (int64_t d = 0; d < call.value.head_size; ++d) out[d] += weight * Load(call.value, b, kv_head, j, d);
  }
  for (int64_t j = 0; j < call.key.tokens; ++j)
    if (score[j] != kHidden) show(ScoreStage::kWeights, first_column + j, std::exp(score[j] - max) / sum);
  const int64_t offset = call.output.Offset(b, head, s);
  for (int64_t d = 0; d < call.value.head_size; ++d)
    StoreElement(call.output.data, call.output.type, offset + d, sum > 0 ? out[d] / sum : 0);
}

}  // namespace

void AttendOracle(const AttentionCall& call) {
  for (int64_t b = 0; b < call.query.batch; ++b)
    for (int64_t s = 0; s < call.query.tokens; ++s) {
      const Axis axis = AxisOf(call, b, s);
      for (int64_t head = 0; head < call.query.heads; ++head) AttendRow(call, axis, b, head, s);
    }
}

void AppendOracle(const AppendCall& call) {
  const MutableHeadsView& present = call.present;
  const bool in_place = call.past.data == present.data;
  for (int64_t b = 0; b < present.batch; ++b) {
    const auto [past_length, length, skip, first_position] = PlaceOf(call, b);
    for (int64_t head = 0; head < present.heads; ++head)
      for (int64_t t = 0; t < present.tokens; ++t) {
        const int64_t source = t + skip;  // among past and new rows
        const int64_t to = present.Offset(b, head, t);
        if (t >= length) {
          if (!in_place) std::memset(At(present.data, present.type, to), 0, BytesOf(present.type, present.head_size));
          continue;
        }
        if (source < past_length) {  // codes stay as they are
          if (in_place && skip == 0) continue;
          for (int64_t d = 0; d < present.head_size; ++d)
            StoreElement(present.data, present.type, to + d,
                         LoadElement(call.past.data, call.past.type, call.past.Offset(b, head, source) + d));
          continue;
        }
        const int64_t s = source - past_length;
        const int64_t position = call.rotary_positions.At(b, s, call.fresh.tokens, first_position);
        const std::vector<double> row = LoadRow(call.fresh, b, head, s, call.norm, call.rotary, position);
        for (int64_t d = 0; d < present.head_size; ++d) {
          const double scale = IsQuantized(present.type) ? present.quant.At(head, present.head_size, d) : 1;
          StoreElement(present.data, present.type, to + d, row[d] / scale);
        }
      }
  }
}

}  // namespace kvshare
