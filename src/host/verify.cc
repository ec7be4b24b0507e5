#include "host/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace kvshare::host {
namespace {

// The largest |a - b| over [begin, end), where a NaN on either side makes the result NaN. Equal infinities differ by 0.
double MaxDifference(const Tensor& a, const Tensor& b, int64_t begin, int64_t end) {
  double largest = 0;
  for (int64_t i = begin; i < end; ++i) {
    const double x = a.At(i);
    const double y = b.At(i);
    if (x == y) continue;
    const double difference = std::fabs(x - y);
    if (std::isnan(difference)) return std::numeric_limits<double>::quiet_NaN();
    largest = std::max(largest, difference);
  }
  return largest;
}

// NaN wins, as in MaxDifference.
double Larger(double a, double b) { return std::isnan(a) || a > b ? a : b; }

Result<const Tensor*> Find(const NamedTensors& golden, const std::string& name, size_t rank) {
  const auto found = golden.find(name);
  if (found == golden.end()) return Status::InvalidInput(fmt::format("golden.npz has no array '{}'", name));
  if (found->second.shape.size() != rank) {
    return Status::InvalidInput(
        fmt::format("golden.npz: '{}' has shape {}; needs rank {}", name, ShapeText(found->second.shape), rank));
  }
  return &found->second;
}

Status CheckShape(const std::string& name, const Tensor& tensor, const std::vector<int64_t>& want) {
  if (tensor.shape == want) return {};
  return Status::InvalidInput(
      fmt::format("golden.npz: '{}' has shape {}; needs {}", name, ShapeText(tensor.shape), ShapeText(want)));
}

// Each sequence has a token to compare, so that no model is equal because nothing was compared.
Status CheckLens(const Tensor& lens, int64_t tokens) {
  if (lens.shape[0] == 0)
    return Status::InvalidInput("golden.npz: 'lens' has no element; needs one for each sequence, and one sequence");
  for (int64_t b = 0; b < lens.shape[0]; ++b)
    if (!(lens.At(b) >= 1 && lens.At(b) <= static_cast<double>(tokens)))
      return Status::InvalidInput(
          fmt::format("golden.npz: 'lens' has lens[{}] = {}; needs 1 to {}, the tokens", b, lens.At(b), tokens));
  return {};
}

Status CheckLogits(const Tensor& logits, const std::vector<int64_t>& want) {
  if (logits.shape == want) return {};
  return Status::InvalidInput(
      fmt::format("output 'logits' has shape {}; expected {}", ShapeText(logits.shape), ShapeText(want)));
}

// The prefill's largest difference over the tokens that are no padding.
double PrefillDifference(const Tensor& logits, const Tensor& expected, const Tensor& lens) {
  const int64_t tokens = expected.shape[1];
  const int64_t vocabulary = expected.shape[2];
  double largest = 0;
  for (int64_t b = 0; b < expected.shape[0]; ++b) {
    const auto valid = static_cast<int64_t>(lens.At(b));
    const int64_t begin = b * tokens * vocabulary;
    largest = Larger(MaxDifference(logits, expected, begin, begin + valid * vocabulary), largest);
  }
  return largest;
}

std::string NameOfStep(size_t t) { return t == 0 ? "prefill" : fmt::format("decode {}", t - 1); }

}  // namespace

bool Verification::Within(double tolerance) const {
  return std::all_of(steps.begin(), steps.end(),
                     [&](const StepDifference& step) { return step.difference <= tolerance; });
}

Result<Verification> VerifyGolden(Decoder& decoder, const NamedTensors& golden) {
  KVSHARE_ASSIGN_OR_RETURN(const Tensor* ids, Find(golden, "input_ids", 2));
  KVSHARE_ASSIGN_OR_RETURN(const Tensor* mask, Find(golden, "attention_mask", 2));
  KVSHARE_ASSIGN_OR_RETURN(const Tensor* positions, Find(golden, "position_ids", 2));
  KVSHARE_ASSIGN_OR_RETURN(const Tensor* lens, Find(golden, "lens", 1));
  KVSHARE_ASSIGN_OR_RETURN(const Tensor* prefill, Find(golden, "prefill_logits", 3));
  KVSHARE_ASSIGN_OR_RETURN(const Tensor* decode_ids, Find(golden, "decode_input_ids", 2));
  KVSHARE_ASSIGN_OR_RETURN(const Tensor* decode_positions, Find(golden, "decode_position_ids", 2));
  KVSHARE_ASSIGN_OR_RETURN(const Tensor* decode_logits, Find(golden, "decode_logits", 3));
  const int64_t batch = ids->shape[0];
  const int64_t tokens = ids->shape[1];
  const int64_t vocabulary = prefill->shape[2];
  const int64_t steps = decode_ids->shape[0];
  KVSHARE_RETURN_IF_ERROR(CheckShape("attention_mask", *mask, {batch, tokens}));
  KVSHARE_RETURN_IF_ERROR(CheckShape("position_ids", *positions, {batch, tokens}));
  KVSHARE_RETURN_IF_ERROR(CheckShape("lens", *lens, {batch}));
  KVSHARE_RETURN_IF_ERROR(CheckLens(*lens, tokens));
  KVSHARE_RETURN_IF_ERROR(CheckShape("prefill_logits", *prefill, {batch, tokens, vocabulary}));
  KVSHARE_RETURN_IF_ERROR(CheckShape("decode_input_ids", *decode_ids, {steps, batch}));
  KVSHARE_RETURN_IF_ERROR(CheckShape("decode_position_ids", *decode_positions, {steps, batch}));
  KVSHARE_RETURN_IF_ERROR(CheckShape("decode_logits", *decode_logits, {steps, batch, vocabulary}));

  Verification verification;
  KVSHARE_ASSIGN_OR_RETURN(const Tensor logits, decoder.Step({*ids, *mask, *positions}));
  KVSHARE_RETURN_IF_ERROR(CheckLogits(logits, {batch, tokens, vocabulary}));
  verification.steps.push_back({NameOfStep(0), PrefillDifference(logits, *prefill, *lens)});
  for (int64_t t = 0; t < steps; ++t) {
    KVSHARE_ASSIGN_OR_RETURN(const Tensor* step_mask, Find(golden, fmt::format("decode_attention_mask_{}", t), 2));
    DecoderStep step{decode_ids->Part(t), *step_mask, decode_positions->Part(t)};
    step.ids.shape.push_back(1);
    step.positions.shape.push_back(1);
    KVSHARE_ASSIGN_OR_RETURN(const Tensor step_logits, decoder.Step(step));
    KVSHARE_RETURN_IF_ERROR(CheckLogits(step_logits, {batch, 1, vocabulary}));
    const double difference = MaxDifference(step_logits, decode_logits->Part(t), 0, batch * vocabulary);
    verification.steps.push_back({NameOfStep(static_cast<size_t>(t) + 1), difference});
  }
  return verification;
}

Result<Verification> VerifyAgainst(Decoder& decoder, Decoder& other, const RandomTokens& tokens) {
  const int64_t vocabulary = std::min(decoder.vocabulary(), other.vocabulary());
  const auto steps = RandomSteps(tokens, vocabulary);
  Verification verification;
  for (size_t t = 0; t < steps.size(); ++t) {
    KVSHARE_ASSIGN_OR_RETURN(const Tensor logits, decoder.Step(steps[t]));
    KVSHARE_ASSIGN_OR_RETURN(const Tensor expected, other.Step(steps[t]));
    KVSHARE_RETURN_IF_ERROR(CheckLogits(logits, expected.shape));
    verification.steps.push_back({NameOfStep(t), MaxDifference(logits, expected, 0, logits.Elements())});
  }
  return verification;
}

}  // namespace kvshare::host
