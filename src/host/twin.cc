#include "host/twin.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/half.h"

namespace kvshare::host {
namespace {

// The largest code of either sign that a value may be clamped to; 0: `code` is no such.
bool IsEnd(DType type, double code) {
  switch (type) {
    case DType::kI8: return code >= 127 || code <= -128;
    case DType::kI4: return code >= 7 || code <= -8;
    default: return std::fabs(code) >= 448;
  }
}

// How far `value` may lie from what the nearest code means: half a step, and what two kernels may differ by.
double HalfStep(DType type, double scale, double value) {
  constexpr double kLeastStepOfFp8 = 0x1p-9;
  constexpr double kHalfStepOfFp8 = 0x1p-4;
  constexpr double kOtherSums = 0.01;  // of the step and of the value
  const double half =
      type == DType::kF8E4M3 ? std::max(kHalfStepOfFp8 * std::fabs(value), kLeastStepOfFp8 * scale / 2) : scale / 2;
  return half * (1 + kOtherSums) + kOtherSums * std::fabs(value);
}

float ScaleOf(const TwinCache& cache, int64_t channel) {
  return cache.scales.size() == 1 ? cache.scales.front() : cache.scales[static_cast<size_t>(channel)];
}

// The index of row `row`, channel `d`, as LoadElement counts elements: a row of int4 ends with a whole byte.
int64_t CodeAt(const TwinCache& cache, const Tensor& codes, int64_t row, int64_t d) {
  const int64_t width = codes.type == DType::kI4 ? 2 * ((cache.head_size + 1) / 2) : cache.head_size;
  return row * width + d;
}

}  // namespace

Result<Tensor> MeaningOf(const TwinCache& cache, const Tensor& codes) {
  const int64_t D = cache.head_size;
  const int64_t width = codes.type == DType::kI4 ? (D + 1) / 2 : D;
  const auto channels = static_cast<size_t>(cache.kv_heads * D);
  if (codes.shape.size() != 4 || codes.shape[1] != cache.kv_heads || codes.shape[3] != width ||
      (cache.scales.size() != 1 && cache.scales.size() != channels))
    return Status::Refused(fmt::format("'{}' has shape {} and {} scales; needs [B, {}, rows, {}] and 1 or {}",
                                       cache.present, ShapeText(codes.shape), cache.scales.size(), cache.kv_heads,
                                       width, channels));
  Tensor meaning = Tensor::Zeros(DType::kF32, {codes.shape[0], cache.kv_heads, codes.shape[2], D});
  const int64_t rows = codes.shape[0] * cache.kv_heads * codes.shape[2];
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t head = row / codes.shape[2] % cache.kv_heads;
    for (int64_t d = 0; d < D; ++d)
      StoreElement(meaning.data.data(), DType::kF32, row * D + d,
                   codes.At(CodeAt(cache, codes, row, d)) * ScaleOf(cache, head * D + d));
  }
  return meaning;
}

Result<Tensor> Twin::Logits(const Decoder& decoder, const Step& step) {
  KVSHARE_ASSIGN_OR_RETURN(NamedTensors values, decoder.Inputs(step));
  if (step.past == 0) {
    KVSHARE_ASSIGN_OR_RETURN(past_, decoder.feeds().FirstStates(step));
    for (const TwinCache& cache : twin_.caches) {
      KVSHARE_ASSIGN_OR_RETURN(past_[cache.past], MeaningOf(cache, past_[cache.past]));
    }
  }
  for (const auto& [name, state] : past_) values[name] = state;
  past_ = decoder.states();
  for (const TwinCache& cache : twin_.caches) {
    KVSHARE_ASSIGN_OR_RETURN(past_[cache.past], MeaningOf(cache, decoder.states().at(cache.past)));
    values[cache.read] = past_[cache.past];
  }
  KVSHARE_ASSIGN_OR_RETURN(NamedTensors outputs, runner_->Run(values));
  for (const TwinCache& cache : twin_.caches)
    Judge(cache, decoder.states().at(cache.past), past_.at(cache.past), outputs.at(cache.present));
  return std::move(outputs["logits"]);
}

// `read`: what the codes mean; `rows`: those of earlier steps as they were read, and this step's before they were
// rounded. Rows of padding are zeros.
void Twin::Judge(const TwinCache& cache, const Tensor& codes, const Tensor& read, const Tensor& rows) {
  Rounding& rounding = roundings_[cache.present];
  rounding.channels.resize(static_cast<size_t>(cache.kv_heads * cache.head_size));
  if (rows.shape != read.shape) return;
  for (int64_t i = 0; i < rows.Elements(); ++i) {
    const double value = rows.At(i);
    const double meant = read.At(i);
    if (value == meant || value == 0) continue;
    const int64_t d = i % cache.head_size;
    const int64_t row = i / cache.head_size;
    const int64_t channel = row / rows.shape[2] % cache.kv_heads * cache.head_size + d;
    Sums& sums = rounding.channels[static_cast<size_t>(channel)];
    sums.squares += value * value;
    sums.errors += (value - meant) * (value - meant);
    const bool is_near = std::fabs(value - meant) <= HalfStep(codes.type, ScaleOf(cache, channel), value);
    if (!is_near && !IsEnd(codes.type, codes.At(CodeAt(cache, codes, row, d)))) ++rounding.far;
  }
}

std::vector<CacheRounding> Twin::Roundings() const {
  std::vector<CacheRounding> all;
  for (const TwinCache& cache : twin_.caches) {
    const auto found = roundings_.find(cache.present);
    if (found == roundings_.end()) continue;
    // One scale for all channels suits the largest.
    const bool alike = cache.scales.size() > 1;
    double errors = 0;
    double squares = 0;
    for (const Sums& sums : found->second.channels) {
      if (sums.squares == 0) continue;
      errors += alike ? sums.errors / sums.squares : sums.errors;
      squares += alike ? 1 : sums.squares;
    }
    all.push_back({cache.present, squares == 0 ? 0 : std::sqrt(errors / squares), found->second.far});
  }
  return all;
}

}  // namespace kvshare::host
