#include "ort/gqa_call.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "core/place_sequences.h"
#include "ort/input_error.h"

namespace kvshare::ort {
namespace {

// The tokens of one sequence in a step.
struct Step {
  int64_t T = 0;       // tokens after it
  int64_t before = 0;  // tokens before it
  int64_t rows = 0;    // of query that are tokens; on a first prompt also those behind T
  int64_t Fresh() const { return T - before; }
};

// The most tokens that seqlens_k may name, and what they are.
struct Limit {
  int64_t tokens;
  const char* what;
};

Limit TokenLimit(const GqaAttributes& attributes, const GqaInputs& in, const GqaShape& shape) {
  const Limit cache = {shape.capacity, "the last row of the cache"};
  const Limit total = {shape.total,
                       in[kAttentionBias] ? "the last column of 'attention_bias'" : "total_sequence_length less one"};
  if (attributes.DropsKeys()) return total.tokens == cache.tokens ? cache : total;
  const bool bounded_by_total = in[kAttentionBias] || in[kQuerySeqlens];
  return bounded_by_total && total.tokens < cache.tokens ? total : cache;
}

Result<Step> ReadStep(std::string_view where, const GqaAttributes& attributes, const GqaInputs& in,
                      const GqaShape& shape, int64_t b) {
  const int32_t seqlens_k = static_cast<const int32_t*>(in[kSeqlensK].data)[b];
  const auto error = [&](const std::string& want) {
    return InputError(where, "seqlens_k", fmt::format("has seqlens_k[{}] = {}", b, seqlens_k), want);
  };
  Step step{.T = int64_t{seqlens_k} + 1, .rows = shape.S};
  const Limit limit = TokenLimit(attributes, in, shape);
  if (step.T < 1 || step.T > limit.tokens) return error(fmt::format("0 to {}, {}", limit.tokens - 1, limit.what));
  if (in[kQuerySeqlens]) {
    step.rows = static_cast<const int32_t*>(in[kQuerySeqlens].data)[b];
    if (step.rows < 0 || step.rows > std::min(shape.S, step.T))
      return InputError(where, "query_seqlens", fmt::format("has query_seqlens[{}] = {}", b, step.rows),
                        fmt::format("0 to {}, the lesser of S and seqlens_k + 1", std::min(shape.S, step.T)));
  }
  step.before = shape.first_prompt ? 0 : step.T - step.rows;
  if (step.before < 0)
    return error(fmt::format("at least {}: the last of the S = {} new tokens", shape.S - 1, shape.S));
  const bool holds_none = attributes.cache_rows > 0 && shape.past_tokens == 0;
  if (shape.Appends() && (!attributes.DropsKeys() || holds_none) && step.before > shape.past_tokens)
    return error(fmt::format("at most {}: {} past rows and {} new ones", shape.past_tokens + step.rows - 1,
                             shape.past_tokens, step.rows));
  return step;
}

// With window_cache_rows: whether the cache holds the keys that the step's tokens see of it.
Status JudgeLatestRows(std::string_view where, const GqaAttributes& attributes, const GqaShape& shape, const Step& step,
                       int64_t b) {
  const int64_t needs = shape.Appends() ? std::min(step.before, attributes.window - 1)
                                        : std::min(step.T, attributes.window - 1 + step.rows);
  if (shape.past_tokens >= needs) return {};
  return InputError(where, shape.form == KvForm::kExternal ? "external_key" : "past_key",
                    fmt::format("has {} rows", shape.past_tokens),
                    fmt::format("at least {}, the earlier keys that the new tokens of batch {} see", needs, b));
}

// The oldest position that the step's first token sees in a window of W keys.
int64_t OldestSeen(const Step& step, int64_t W) { return std::max<int64_t>(0, step.before - W + 1); }

Status DroppedKeys(std::string_view where, const GqaAttributes& attributes, const GqaShape& shape, const Step& step,
                   const WindowPlace& place, int64_t b) {
  return InputError(
      where, shape.form == KvForm::kExternal ? "external_key" : "past_key",
      fmt::format("holds positions {} to {} of batch {}", place.first, step.T - 1, b),
      fmt::format("position {} too, which the first of the {} new tokens sees: shorter chunks, or chunks "
                  "of at most C - W + 1 = {} that end where the cache is full",
                  OldestSeen(step, attributes.window), step.Fresh(), shape.past_tokens - attributes.window + 1));
}

// With a window-sized cache: whether its present lacks keys that some query sees, so that the call must look at past
// and new rows side by side.
Status JudgeWindow(std::string_view where, const GqaAttributes& attributes, const GqaShape& shape, const Step& step,
                   int64_t b, GqaRules& rules) {
  WindowCache& cache = rules.positions.cache;
  if (!cache) return {};
  const WindowPlace place = PlaceInWindow(cache, step.T, step.before);
  const bool lacks_keys = step.Fresh() > 0 && place.first > OldestSeen(step, attributes.window);
  if (lacks_keys && !shape.Appends()) return DroppedKeys(where, attributes, shape, step, place, b);
  cache.staged = cache.staged || lacks_keys;
  rules.stage_rows = std::max(rules.stage_rows, place.held + place.skip);
  return {};
}

// A cache that keeps each sequence's latest rows, as many as it has. Before a step those are rows of past, after it of
// present or of a borrowed cache, whose extents may differ: numbers say what no WindowCache does.
class LatestRows {
 public:
  LatestRows(const GqaShape& shape, bool rotary, GqaRules& rules) : shape_(shape) {
    constexpr int64_t kArrays = 5;
    rules.numbers.resize(static_cast<size_t>(shape.B * (kArrays + (rotary ? shape.S : 0))));
    int64_t* next = rules.numbers.data();
    for (int64_t** array : {&held_, &query_position_, &first_, &held_before_, &skip_}) {
      *array = next;
      next += shape.B;
    }
    rules.positions.length = held_;
    rules.positions.query_position = query_position_;
    rules.positions.first_column = first_;
    rules.past_length = held_before_;
    rules.skip = skip_;
    if (!rotary || rules.rotary.data != nullptr) return;
    rotary_ = next;
    rules.rotary = rotary_;
  }

  void Place(const Step& step, int64_t b) {
    held_[b] = std::min(step.T, shape_.capacity);
    first_[b] = step.T - held_[b];
    query_position_[b] = step.before - first_[b];
    held_before_[b] = std::min(step.before, shape_.past_tokens);
    skip_[b] = held_before_[b] + step.Fresh() - held_[b];
    for (int64_t s = 0; rotary_ != nullptr && s < shape_.S; ++s) rotary_[b * shape_.S + s] = step.before + s;
  }

 private:
  const GqaShape& shape_;
  int64_t* held_ = nullptr;
  int64_t* query_position_ = nullptr;
  int64_t* first_ = nullptr;  // position of row 0 afterwards
  int64_t* held_before_ = nullptr;
  int64_t* skip_ = nullptr;
  int64_t* rotary_ = nullptr;
};

Status JudgeRotary(std::string_view where, const GqaInputs& in, const GqaShape& shape, const Step& step, int64_t b,
                   const RotaryPositions& positions) {
  const int64_t rows = in[kCosCache].dims[0];
  for (int64_t s = 0; s < step.rows; ++s) {
    const int64_t position = positions.At(b, s, shape.S, step.before);
    if (position >= 0 && position < rows) continue;
    if (!in[kPositionIds])
      return InputError(where, "cos_cache", fmt::format("has {} rows", rows),
                        fmt::format("a row for position {} of batch {}", position, b));
    return InputError(where, "position_ids", fmt::format("puts token {} of batch {} at {}", s, b, position),
                      fmt::format("0 to {}, the last row of 'cos_cache'", rows - 1));
  }
  return {};
}

// ONNX Runtime's rule: on a first prompt the first number counts, for all sequences.
Result<RotaryPositions> RotaryRule(std::string_view where, const GqaInputs& in, const GqaShape& shape, Memory memory) {
  RotaryPositions rule;
  const Tensor& ids = in[kPositionIds];
  if (!ids) return rule;
  if (shape.B > 0 &&
      (shape.first_prompt ? ids.Count() < 1 : (ids.rank != 2 || ids.dims[0] != shape.B || ids.dims[1] != shape.S)))
    return InputError(where, "position_ids", fmt::format("has shape {}", ids.ShapeText()),
                      fmt::format("{}x{}, [B, S]", shape.B, shape.S));
  rule.data = static_cast<const int64_t*>(ids.data);
  rule.same_start = shape.first_prompt;
  rule.memory = memory;
  return rule;
}

Lengths Numbers(const Tensor& tensor, Lengths::Kind kind, Memory memory, int64_t bound) {
  Lengths lengths;
  lengths.kind = kind;
  lengths.data = tensor.data;
  lengths.type = DType::kI32;
  lengths.memory = memory;
  lengths.bound = bound;
  return lengths;
}

}  // namespace

Result<GqaRules> GqaRulesOf(std::string_view where, const GqaAttributes& attributes, const GqaInputs& in,
                            const GqaShape& shape, Memory memory) {
  GqaRules rules;
  Positions& positions = rules.positions;
  using Kind = Lengths::Kind;
  positions.length = Numbers(in[kSeqlensK], Kind::kLessOne, memory, TokenLimit(attributes, in, shape).tokens);
  if (in[kQuerySeqlens]) positions.query_length = Numbers(in[kQuerySeqlens], Kind::kGiven, memory, shape.S);
  positions.query_position = shape.first_prompt ? Lengths::Same(0) : Lengths::AtEnd();
  if (attributes.window_sized_cache)
    positions.cache = {.capacity = shape.past_tokens, .window = attributes.window, .staged = false};
  if (attributes.rotary) {
    KVSHARE_ASSIGN_OR_RETURN(rules.rotary, RotaryRule(where, in, shape, memory));
  }
  if (memory == Memory::kDevice) {  // one token sees what the present keeps; more may see what it drops
    positions.cache.staged = attributes.window_sized_cache && shape.Appends() && shape.S > 1;
    rules.stage_rows = shape.past_tokens + shape.S;
    return rules;
  }
  std::optional<LatestRows> latest;
  if (attributes.cache_rows > 0) latest.emplace(shape, attributes.rotary, rules);
  for (int64_t b = 0; b < shape.B; ++b) {
    KVSHARE_ASSIGN_OR_RETURN(const Step step, ReadStep(where, attributes, in, shape, b));
    KVSHARE_RETURN_IF_ERROR(JudgeWindow(where, attributes, shape, step, b, rules));
    if (latest) {
      KVSHARE_RETURN_IF_ERROR(JudgeLatestRows(where, attributes, shape, step, b));
      latest->Place(step, b);
    }
    if (attributes.rotary) KVSHARE_RETURN_IF_ERROR(JudgeRotary(where, in, shape, step, b, rules.rotary));
  }
  return rules;
}

}  // namespace kvshare::ort
