#include "host/comparison.h"

#include <fmt/format.h>

#include <algorithm>

#include "host/differences.h"

namespace kvshare::host {
namespace {

// The tolerance of a model in f32.
constexpr double kF32Tolerance = 1e-4;
// The tolerance of a model in f16 or bf16, in roundings of the row's largest logit to that type. The exported cases
// show at most 34.
constexpr double kRoundingsOfHalfPrecision = 64;

// Tolerances of models with caches of codes, as shares of the row's largest logit. They are the largest errors of the
// exported cases (docs/caches.md), whose random weights magnify an error.
constexpr double kInt8Tolerance = 0.25;
constexpr double kFp8Tolerance = 0.75;
constexpr double kInt4Tolerance = 1.5;

// The largest difference between logits and those of the same codes in f32, as a share of the row's largest logit. Sums
// differ in order, and decode rounds queries and weights for integer products: outputs are off by up to 1e-4.
constexpr double kTwinTolerance = 5e-3;

// The largest error that rounding to codes may cause in a channel with a scale that suits it, as a share of its root
// mean square. A step of int8 is 1/85 of a channel's largest value, one of int4 1/7, and fp8 has 3 bits behind the
// first.
double RoundingOf(DType precision) {
  switch (precision) {
    case DType::kI8: return 0.03;
    case DType::kF8E4M3: return 0.06;
    default: return 0.25;
  }
}

// The default tolerance, as a share of the row's largest logit.
double RelativeTolerance(DType precision) {
  switch (precision) {
    case DType::kI8: return kInt8Tolerance;
    case DType::kF8E4M3: return kFp8Tolerance;
    case DType::kI4: return kInt4Tolerance;
    case DType::kF16: return kRoundingsOfHalfPrecision * 0x1p-11;
    default: return kRoundingsOfHalfPrecision * 0x1p-8;
  }
}

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

std::string NameOfStep(size_t t) { return t == 0 ? "prefill" : fmt::format("decode {}", t - 1); }

std::vector<int64_t> LensOf(const Tensor& lens) {
  std::vector<int64_t> numbers;
  for (int64_t b = 0; b < lens.Elements(); ++b) numbers.push_back(static_cast<int64_t>(lens.At(b)));
  return numbers;
}

// A decoder's answers; where it has a twin, each is compared with the twin's, and what is unrounded with what is
// expected.
class Answers {
 public:
  explicit Answers(const Judged& model) : model_(model) {}

  Result<Tensor> Logits(const Step& step) {
    KVSHARE_ASSIGN_OR_RETURN(Tensor logits, model_.decoder->Logits(step));
    if (model_.twin == nullptr) return logits;
    KVSHARE_ASSIGN_OR_RETURN(const Tensor meant, model_.twin->Logits(*model_.decoder, step));
    KVSHARE_ASSIGN_OR_RETURN(const StepDifference difference, DifferenceOf("", logits, meant, step.lens));
    check_.difference = Larger(difference.relative, check_.difference);
    return logits;
  }

  // Compares the unrounded model in a step that Logits has answered.
  Status CompareUnrounded(const Step& step, const Tensor& expected) {
    if (model_.twin == nullptr) return {};
    KVSHARE_ASSIGN_OR_RETURN(const Tensor logits, model_.Unrounded().Logits(step));
    KVSHARE_ASSIGN_OR_RETURN(const StepDifference difference, DifferenceOf("", logits, expected, step.lens));
    AddUnrounded(difference);
    return {};
  }

  void AddUnrounded(const StepDifference& difference) {
    check_.unrounded.difference = Larger(difference.difference, check_.unrounded.difference);
    check_.unrounded.relative = Larger(difference.relative, check_.unrounded.relative);
  }

  // `expected`: the type of the logits that were expected.
  void Tell(DType expected, Verification& verification) {
    if (model_.twin == nullptr) return;
    check_.caches = model_.twin->Roundings();
    check_.precision = Coarser(model_.Unrounded().precision(), expected);
    verification.codes = std::move(check_);
  }

 private:
  Judged model_;
  CodesCheck check_;
};

void Add(StepDifference difference, int64_t steps, const VerifyProgress& progress, Verification& verification) {
  verification.steps.push_back(std::move(difference));
  if (progress) progress(verification.steps.size(), static_cast<uint64_t>(steps));
}

// The inputs of golden.npz for a model, step by step.
class GoldenInputs {
 public:
  GoldenInputs(const NamedTensors& golden, const Feeds& feeds) : golden_(golden), feeds_(feeds) {}

  // The arrays of the prompt, whose extents they tell.
  Result<Step> Prefill() const {
    Step step;
    for (const Feed& feed : feeds_.all()) {
      if (!feed.IsPrompt()) continue;
      KVSHARE_ASSIGN_OR_RETURN(const Tensor* prompt, Find(golden_, feed.input.name, feed.axes.size()));
      step.batch = prompt->shape[0];
      step.tokens = prompt->shape[1];
      break;
    }
    for (const Feed& feed : feeds_.all()) {
      if (!IsGiven(feed)) continue;
      const std::string& name = feed.input.name;
      KVSHARE_ASSIGN_OR_RETURN(step.given[name], Whole(name, feed.ShapeAt(step)));
    }
    return step;
  }

  // Decode step `t` of `steps`, behind `past` tokens.
  Result<Step> Decode(int64_t t, int64_t steps, int64_t batch, int64_t past) const {
    Step step{.batch = batch, .tokens = 1, .past = past, .given = {}, .lens = {}};
    for (const Feed& feed : feeds_.all()) {
      if (!IsGiven(feed)) continue;
      const std::string& name = feed.input.name;
      const std::vector<int64_t> shape = feed.ShapeAt(step);
      if (feed.role == Role::kMask) {  // one column more at each step
        KVSHARE_ASSIGN_OR_RETURN(step.given[name], Whole(fmt::format("decode_{}_{}", name, t), shape));
      } else if (feed.role == Role::kOther) {
        KVSHARE_ASSIGN_OR_RETURN(step.given[name], Whole(name, shape));
      } else {
        KVSHARE_ASSIGN_OR_RETURN(step.given[name], Part(feed, shape, t, steps));
      }
    }
    return step;
  }

 private:
  static bool IsGiven(const Feed& feed) {
    return feed.IsPrompt() || feed.role == Role::kMask || feed.role == Role::kPositions || feed.role == Role::kOther;
  }

  Result<Tensor> Whole(const std::string& name, const std::vector<int64_t>& shape) const {
    KVSHARE_ASSIGN_OR_RETURN(const Tensor* array, Find(golden_, name, shape.size()));
    KVSHARE_RETURN_IF_ERROR(CheckShape(name, *array, shape));
    return *array;
  }

  // Part `t` of an array of all decode steps, which has no axis for their one token.
  Result<Tensor> Part(const Feed& feed, const std::vector<int64_t>& shape, int64_t t, int64_t steps) const {
    const size_t token_axis = feed.role == Role::kEmbeddings ? 1 : shape.size() - 1;
    std::vector<int64_t> all = shape;
    all.erase(all.begin() + static_cast<std::ptrdiff_t>(token_axis));
    all.insert(all.begin(), steps);
    KVSHARE_ASSIGN_OR_RETURN(const Tensor array, Whole("decode_" + feed.input.name, all));
    Tensor part = array.Part(t);
    part.shape = shape;
    return part;
  }

  const NamedTensors& golden_;
  const Feeds& feeds_;
};

// Both models take the same tokens: the same inputs, of the same shape.
Status CheckSamePrompt(const Step& step, const Step& other) {
  for (const auto& [name, tensor] : step.given) {
    const auto found = other.given.find(name);
    if (found == other.given.end())
      return Status::Refused(
          fmt::format("input '{}' is one of the first model only; needs two models that take the same prompt", name));
    if (found->second.shape != tensor.shape)
      return Status::Refused(fmt::format(
          "input '{}' has shape {} in one model and {} in the other; needs two models that take the same prompt", name,
          ShapeText(tensor.shape), ShapeText(found->second.shape)));
  }
  for (const auto& [name, tensor] : other.given)
    if (!step.given.contains(name))
      return Status::Refused(
          fmt::format("input '{}' is one of the second model only; needs two models that take the same prompt", name));
  return {};
}

}  // namespace

Result<Verification> VerifyGolden(const Judged& model, const NamedTensors& golden, const VerifyProgress& progress) {
  const GoldenInputs inputs(golden, model.decoder->feeds());
  KVSHARE_ASSIGN_OR_RETURN(const Tensor* lens, Find(golden, "lens", 1));
  KVSHARE_ASSIGN_OR_RETURN(const Tensor* prefill, Find(golden, "prefill_logits", 3));
  KVSHARE_ASSIGN_OR_RETURN(const Tensor* decode_logits, Find(golden, "decode_logits", 3));
  KVSHARE_ASSIGN_OR_RETURN(Step prompt, inputs.Prefill());
  const int64_t batch = prompt.batch;
  const int64_t vocabulary = prefill->shape[2];
  const int64_t steps = decode_logits->shape[0];
  KVSHARE_RETURN_IF_ERROR(CheckShape("lens", *lens, {batch}));
  KVSHARE_RETURN_IF_ERROR(CheckLens(*lens, prompt.tokens));
  KVSHARE_RETURN_IF_ERROR(CheckShape("prefill_logits", *prefill, {batch, prompt.tokens, vocabulary}));
  KVSHARE_RETURN_IF_ERROR(CheckShape("decode_logits", *decode_logits, {steps, batch, vocabulary}));

  Verification verification;
  verification.precision = model.decoder->precision();
  Answers answers(model);
  prompt.lens = LensOf(*lens);
  KVSHARE_ASSIGN_OR_RETURN(const Tensor logits, answers.Logits(prompt));
  KVSHARE_RETURN_IF_ERROR(answers.CompareUnrounded(prompt, *prefill));
  KVSHARE_ASSIGN_OR_RETURN(auto at_prompt, DifferenceOf(NameOfStep(0), logits, *prefill, prompt.lens));
  Add(std::move(at_prompt), steps + 1, progress, verification);
  for (int64_t t = 0; t < steps; ++t) {
    KVSHARE_ASSIGN_OR_RETURN(const Step step, inputs.Decode(t, steps, batch, prompt.tokens + t));
    KVSHARE_ASSIGN_OR_RETURN(const Tensor step_logits, answers.Logits(step));
    Tensor expected = decode_logits->Part(t);
    expected.shape = {batch, 1, vocabulary};
    KVSHARE_RETURN_IF_ERROR(answers.CompareUnrounded(step, expected));
    KVSHARE_ASSIGN_OR_RETURN(auto difference,
                             DifferenceOf(NameOfStep(static_cast<size_t>(t) + 1), step_logits, expected, {}));
    Add(std::move(difference), steps + 1, progress, verification);
  }
  answers.Tell(DType::kF32, verification);
  return verification;
}

Result<Verification> VerifyAgainst(const Judged& model, const Judged& other, const RandomTokens& tokens,
                                   const VerifyProgress& progress, const HardRuns* hard) {
  const Feeds& feeds = model.decoder->feeds();
  const int64_t vocabulary = std::min(model.decoder->vocabulary(), other.decoder->vocabulary());
  KVSHARE_ASSIGN_OR_RETURN(const auto steps, RandomSteps(tokens, feeds, vocabulary));
  KVSHARE_ASSIGN_OR_RETURN(const auto other_steps, RandomSteps(tokens, other.decoder->feeds(), vocabulary));
  Verification verification;
  verification.precision = Coarser(model.decoder->precision(), other.decoder->precision());
  verification.invented = feeds.invented();
  verification.seed = tokens.seed;
  Answers answers(model);
  const auto total = static_cast<int64_t>(steps.size()) + (hard == nullptr ? 0 : hard->Count());
  for (size_t t = 0; t < steps.size(); ++t) {
    KVSHARE_RETURN_IF_ERROR(CheckSamePrompt(steps[t], other_steps[t]));
    KVSHARE_ASSIGN_OR_RETURN(const Tensor logits, answers.Logits(steps[t]));
    KVSHARE_ASSIGN_OR_RETURN(const Tensor expected, other.decoder->Logits(other_steps[t]));
    if (other.twin == nullptr) {
      KVSHARE_RETURN_IF_ERROR(answers.CompareUnrounded(steps[t], expected));
    } else {
      KVSHARE_ASSIGN_OR_RETURN(const Tensor unrounded, other.Unrounded().Logits(other_steps[t]));
      KVSHARE_RETURN_IF_ERROR(answers.CompareUnrounded(steps[t], unrounded));
    }
    // No sequence is padded: all end at the last token.
    KVSHARE_ASSIGN_OR_RETURN(auto difference, DifferenceOf(NameOfStep(t), logits, expected, {}));
    Add(std::move(difference), total, progress, verification);
  }
  const auto add = [&](StepDifference difference) {
    if (model.twin != nullptr) {
      answers.AddUnrounded(difference);
      difference.step += " unrounded";
    }
    Add(std::move(difference), total, progress, verification);
  };
  if (hard != nullptr) hard->Compare(model.Unrounded(), other.Unrounded(), add, verification.notes);
  answers.Tell(other.Unrounded().precision(), verification);
  return verification;
}

// Judges the codes of a model: its logits beside the twin's, and what rounding takes from each cache.
void JudgeCodes(DType precision, CodesCheck& codes) {
  codes.tolerance = kTwinTolerance;
  codes.rounding = RoundingOf(precision);
  codes.right =
      codes.difference <= codes.tolerance && std::ranges::all_of(codes.caches, [&](const CacheRounding& cache) {
        return (cache.alike || cache.share <= codes.rounding) && cache.far == 0;
      });
}

void Judge(std::optional<double> tolerance, Verification& verification) {
  const DType precision = verification.codes ? verification.codes->precision : verification.precision;
  verification.relative = !tolerance && precision != DType::kF32;
  if (tolerance) {
    verification.tolerance = *tolerance;
  } else if (precision == DType::kF32) {
    verification.tolerance = kF32Tolerance;
  } else {
    verification.tolerance = RelativeTolerance(precision);
  }
  if (!verification.codes) {
    verification.equal = verification.relative ? verification.RelativelyWithin(verification.tolerance)
                                               : verification.Within(verification.tolerance);
    return;
  }
  CodesCheck& codes = *verification.codes;
  JudgeCodes(verification.precision, codes);
  const double unrounded = verification.relative ? codes.unrounded.relative : codes.unrounded.difference;
  verification.equal = codes.right && unrounded <= verification.tolerance;
}

}  // namespace kvshare::host
