#include "host/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "host/model_facts.h"
#include "host/npz.h"

namespace kvshare::host {
namespace {

// What a right model in f32 stays within.
constexpr double kF32Tolerance = 1e-4;
// What a right model in f16 or bf16 stays within, in roundings to its type of the row's largest logit: in the exported
// cases 34 are seen.
constexpr double kRoundingsOfHalfPrecision = 64;

// What a model with caches of codes stays within, in shares of the row's largest logit: what narrowed exported
// cases show at most (docs/caches.md), whose random weights magnify an error.
constexpr double kInt8Tolerance = 0.25;
constexpr double kFp8Tolerance = 0.75;
constexpr double kInt4Tolerance = 1.5;

// By default, of the row's largest logit.
double RelativeTolerance(DType precision) {
  switch (precision) {
    case DType::kI8: return kInt8Tolerance;
    case DType::kF8E4M3: return kFp8Tolerance;
    case DType::kI4: return kInt4Tolerance;
    case DType::kF16: return kRoundingsOfHalfPrecision * 0x1p-11;
    default: return kRoundingsOfHalfPrecision * 0x1p-8;
  }
}

// NaN wins.
double Larger(double a, double b) { return std::isnan(a) || a > b ? a : b; }

// Takes the rows [begin, end) of V logits each into `step`. Equal infinities differ by 0.
void Compare(const Tensor& got, const Tensor& want, int64_t begin, int64_t end, StepDifference& step) {
  const int64_t V = want.shape.back();
  for (int64_t row = begin; row < end; ++row) {
    double difference = 0;
    double largest = 0;
    for (int64_t i = row * V; i < (row + 1) * V; ++i) {
      const double x = got.At(i);
      const double y = want.At(i);
      largest = std::max(largest, std::fabs(y));
      if (x != y) difference = Larger(std::fabs(x - y), difference);
    }
    step.difference = Larger(difference, step.difference);
    step.relative = Larger(difference == 0 ? 0 : difference / largest, step.relative);
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

Status CheckLogits(const Tensor& logits, const std::vector<int64_t>& want) {
  if (logits.shape == want) return {};
  return Status::InvalidInput(
      fmt::format("output 'logits' has shape {}; expected {}", ShapeText(logits.shape), ShapeText(want)));
}

std::string NameOfStep(size_t t) { return t == 0 ? "prefill" : fmt::format("decode {}", t - 1); }

// Those rows of `logits` [B, S, V] that a model answers which computes no others: each sequence's last token's.
Tensor LastRows(const Tensor& logits, const std::vector<int64_t>& lens) {
  Tensor last = Tensor::Zeros(logits.type, {logits.shape[0], 1, logits.shape[2]});
  const size_t bytes = last.data.size() / lens.size();
  for (size_t b = 0; b < lens.size(); ++b) {
    const int64_t row = static_cast<int64_t>(b) * logits.shape[1] + lens[b] - 1;
    std::copy_n(logits.data.begin() + row * static_cast<std::ptrdiff_t>(bytes), bytes,
                last.data.begin() + static_cast<std::ptrdiff_t>(b * bytes));
  }
  return last;
}

// Are `logits` those of the last tokens alone, where those of [B, S, V] were expected?
bool OfLastTokens(const Tensor& logits, const std::vector<int64_t>& want) {
  return want.size() == 3 && want[0] > 0 && want[1] > 1 && logits.shape == std::vector<int64_t>{want[0], 1, want[2]};
}

// The logits of a prefill at the tokens that are no padding, or at the last of them.
StepDifference ComparePrefill(const Tensor& got, const Tensor& want, const Tensor& lens) {
  StepDifference step{.step = NameOfStep(0)};
  const int64_t tokens = want.shape[1];
  if (OfLastTokens(got, want.shape)) {
    std::vector<int64_t> last;
    for (int64_t b = 0; b < want.shape[0]; ++b) last.push_back(static_cast<int64_t>(lens.At(b)));
    Compare(got, LastRows(want, last), 0, want.shape[0], step);
    return step;
  }
  for (int64_t b = 0; b < want.shape[0]; ++b)
    Compare(got, want, b * tokens, b * tokens + static_cast<int64_t>(lens.At(b)), step);
  return step;
}

void Add(StepDifference difference, int64_t steps, const VerifyProgress& progress, Verification& verification) {
  verification.steps.push_back(std::move(difference));
  if (progress) progress(verification.steps.size(), static_cast<uint64_t>(steps));
}

// What golden.npz gives a model, step by step.
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
    Step step{.batch = batch, .tokens = 1, .past = past, .given = {}};
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

Result<Verification> VerifyGolden(Decoder& decoder, const NamedTensors& golden, const VerifyProgress& progress) {
  const GoldenInputs inputs(golden, decoder.feeds());
  KVSHARE_ASSIGN_OR_RETURN(const Tensor* lens, Find(golden, "lens", 1));
  KVSHARE_ASSIGN_OR_RETURN(const Tensor* prefill, Find(golden, "prefill_logits", 3));
  KVSHARE_ASSIGN_OR_RETURN(const Tensor* decode_logits, Find(golden, "decode_logits", 3));
  KVSHARE_ASSIGN_OR_RETURN(const Step prompt, inputs.Prefill());
  const int64_t batch = prompt.batch;
  const int64_t vocabulary = prefill->shape[2];
  const int64_t steps = decode_logits->shape[0];
  KVSHARE_RETURN_IF_ERROR(CheckShape("lens", *lens, {batch}));
  KVSHARE_RETURN_IF_ERROR(CheckLens(*lens, prompt.tokens));
  KVSHARE_RETURN_IF_ERROR(CheckShape("prefill_logits", *prefill, {batch, prompt.tokens, vocabulary}));
  KVSHARE_RETURN_IF_ERROR(CheckShape("decode_logits", *decode_logits, {steps, batch, vocabulary}));

  Verification verification;
  verification.precision = decoder.precision();
  KVSHARE_ASSIGN_OR_RETURN(const Tensor logits, decoder.Logits(prompt));
  if (!OfLastTokens(logits, prefill->shape)) KVSHARE_RETURN_IF_ERROR(CheckLogits(logits, prefill->shape));
  Add(ComparePrefill(logits, *prefill, *lens), steps + 1, progress, verification);
  for (int64_t t = 0; t < steps; ++t) {
    KVSHARE_ASSIGN_OR_RETURN(const Step step, inputs.Decode(t, steps, batch, prompt.tokens + t));
    KVSHARE_ASSIGN_OR_RETURN(const Tensor step_logits, decoder.Logits(step));
    KVSHARE_RETURN_IF_ERROR(CheckLogits(step_logits, {batch, 1, vocabulary}));
    StepDifference difference{.step = NameOfStep(static_cast<size_t>(t) + 1)};
    Compare(step_logits, decode_logits->Part(t), 0, batch, difference);
    Add(std::move(difference), steps + 1, progress, verification);
  }
  return verification;
}

Result<Verification> VerifyAgainst(Decoder& decoder, Decoder& other, const RandomTokens& tokens,
                                   const VerifyProgress& progress) {
  const int64_t vocabulary = std::min(decoder.vocabulary(), other.vocabulary());
  KVSHARE_ASSIGN_OR_RETURN(const auto steps, RandomSteps(tokens, decoder.feeds(), vocabulary));
  KVSHARE_ASSIGN_OR_RETURN(const auto other_steps, RandomSteps(tokens, other.feeds(), vocabulary));
  Verification verification;
  verification.precision = Coarser(decoder.precision(), other.precision());
  verification.invented = decoder.feeds().invented();
  verification.seed = tokens.seed;
  for (size_t t = 0; t < steps.size(); ++t) {
    KVSHARE_RETURN_IF_ERROR(CheckSamePrompt(steps[t], other_steps[t]));
    KVSHARE_ASSIGN_OR_RETURN(Tensor logits, decoder.Logits(steps[t]));
    KVSHARE_ASSIGN_OR_RETURN(Tensor expected, other.Logits(other_steps[t]));
    // No sequence is padded: all end at the last token.
    for (const auto& [few, all] : {std::pair{&logits, &expected}, {&expected, &logits}})
      if (OfLastTokens(*few, all->shape))
        *all = LastRows(*all, std::vector<int64_t>(static_cast<size_t>(all->shape[0]), all->shape[1]));
    KVSHARE_RETURN_IF_ERROR(CheckLogits(logits, expected.shape));
    if (expected.Elements() == 0) return Status::Refused("output 'logits' is empty; needs one to compare");
    StepDifference difference{.step = NameOfStep(t)};
    Compare(logits, expected, 0, expected.Elements() / expected.shape.back(), difference);
    Add(std::move(difference), static_cast<int64_t>(steps.size()), progress, verification);
  }
  return verification;
}

void Judge(std::optional<double> tolerance, Verification& verification) {
  const DType precision = verification.precision;
  verification.relative = !tolerance && precision != DType::kF32;
  if (tolerance) {
    verification.tolerance = *tolerance;
  } else if (precision == DType::kF32) {
    verification.tolerance = kF32Tolerance;
  } else {
    verification.tolerance = RelativeTolerance(precision);
  }
  verification.equal = verification.relative ? verification.RelativelyWithin(verification.tolerance)
                                             : verification.Within(verification.tolerance);
}

}  // namespace kvshare::host

namespace kvshare {

bool Verification::Within(double limit) const {
  return std::all_of(steps.begin(), steps.end(), [&](const StepDifference& step) { return step.difference <= limit; });
}

bool Verification::RelativelyWithin(double limit) const {
  return std::all_of(steps.begin(), steps.end(), [&](const StepDifference& step) { return step.relative <= limit; });
}

namespace {

Result<host::Decoder> LoadDecoder(const std::string& model_path, const RunOptions& options, const Runtime& runtime) {
  KVSHARE_ASSIGN_OR_RETURN(const Inspection inspection, Inspect(model_path));
  KVSHARE_ASSIGN_OR_RETURN(const SessionSetup setup, host::SetupFor(inspection, options));
  KVSHARE_ASSIGN_OR_RETURN(std::unique_ptr<Runner> runner, runtime.Load(model_path, setup));
  return host::Decoder::Create(std::move(runner), host::KnownInputsOf(inspection, options.extents));
}

Result<Verification> Compare(const std::string& model_path, const VerifyOptions& options, const Runtime& runtime) {
  if (!options.golden.empty()) {
    KVSHARE_ASSIGN_OR_RETURN(const NamedTensors golden, host::ReadNpz(options.golden + "/golden.npz"));
    KVSHARE_ASSIGN_OR_RETURN(host::Decoder decoder, LoadDecoder(model_path, options.run, runtime));
    return host::VerifyGolden(decoder, golden, options.progress);
  }
  // The other model stands for the truth: it gets the library only where it cannot do without, and no entries.
  const RunOptions plain{
      .via = Via::kAsNeeded, .library = options.run.library, .entries = {}, .extents = options.run.extents};
  KVSHARE_ASSIGN_OR_RETURN(host::Decoder decoder, LoadDecoder(model_path, options.run, runtime));
  KVSHARE_ASSIGN_OR_RETURN(host::Decoder other, LoadDecoder(options.against, plain, runtime));
  return host::VerifyAgainst(decoder, other, options.tokens, options.progress);
}

}  // namespace

Result<Verification> Verify(const std::string& model_path, const VerifyOptions& options, const Runtime& runtime) {
  if (options.golden.empty() == options.against.empty())
    return Status::InvalidInput("needs either option 'golden' or option 'against'");
  KVSHARE_ASSIGN_OR_RETURN(Verification verification, Compare(model_path, options, runtime));
  host::Judge(options.tolerance, verification);
  verification.runtime = runtime.version();
  return verification;
}

}  // namespace kvshare
