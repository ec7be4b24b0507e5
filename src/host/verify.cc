#include "host/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "host/differences.h"
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

// By how much logits may differ from those of the same codes in f32, in shares of the row's largest: other sums, and
// queries and weights rounded for integer products in decode, which an output is off by 1e-4 for.
constexpr double kTwinTolerance = 5e-3;

// What rounding to codes takes from a cache's channels, in shares of each channel's root mean square, with a scale that
// suits them: a step of int8 is 1/85 of a channel's largest value, one of int4 1/7, and fp8 has 3 bits behind the
// first.
double RoundingOf(DType precision) {
  switch (precision) {
    case DType::kI8: return 0.03;
    case DType::kF8E4M3: return 0.06;
    default: return 0.25;
  }
}

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

// A decoder's answers; where it has a twin, each is compared with the twin's.
class Answers {
 public:
  Answers(Decoder& decoder, Twin* twin) : decoder_(decoder), twin_(twin) {}

  Result<Tensor> Logits(const Step& step) {
    KVSHARE_ASSIGN_OR_RETURN(Tensor logits, decoder_.Logits(step));
    if (twin_ == nullptr) return logits;
    KVSHARE_ASSIGN_OR_RETURN(const Tensor meant, twin_->Logits(decoder_, step));
    KVSHARE_ASSIGN_OR_RETURN(const StepDifference difference, DifferenceOf("", logits, meant, step.lens));
    check_.difference = Larger(difference.relative, check_.difference);
    return logits;
  }

  void Tell(Verification& verification) {
    if (twin_ == nullptr) return;
    check_.caches = twin_->Roundings();
    verification.codes = std::move(check_);
  }

 private:
  Decoder& decoder_;
  Twin* twin_;
  CodesCheck check_;
};

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

Result<Verification> VerifyGolden(Decoder& decoder, const NamedTensors& golden, const VerifyProgress& progress,
                                  Twin* twin) {
  const GoldenInputs inputs(golden, decoder.feeds());
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
  verification.precision = decoder.precision();
  Answers answers(decoder, twin);
  prompt.lens = LensOf(*lens);
  KVSHARE_ASSIGN_OR_RETURN(const Tensor logits, answers.Logits(prompt));
  KVSHARE_ASSIGN_OR_RETURN(auto at_prompt, DifferenceOf(NameOfStep(0), logits, *prefill, prompt.lens));
  Add(std::move(at_prompt), steps + 1, progress, verification);
  for (int64_t t = 0; t < steps; ++t) {
    KVSHARE_ASSIGN_OR_RETURN(const Step step, inputs.Decode(t, steps, batch, prompt.tokens + t));
    KVSHARE_ASSIGN_OR_RETURN(const Tensor step_logits, answers.Logits(step));
    Tensor expected = decode_logits->Part(t);
    expected.shape = {batch, 1, vocabulary};
    KVSHARE_ASSIGN_OR_RETURN(auto difference,
                             DifferenceOf(NameOfStep(static_cast<size_t>(t) + 1), step_logits, expected, {}));
    Add(std::move(difference), steps + 1, progress, verification);
  }
  answers.Tell(verification);
  return verification;
}

Result<Verification> VerifyAgainst(Decoder& decoder, Decoder& other, const RandomTokens& tokens,
                                   const VerifyProgress& progress, Twin* twin, const HardRuns* hard) {
  const int64_t vocabulary = std::min(decoder.vocabulary(), other.vocabulary());
  KVSHARE_ASSIGN_OR_RETURN(const auto steps, RandomSteps(tokens, decoder.feeds(), vocabulary));
  KVSHARE_ASSIGN_OR_RETURN(const auto other_steps, RandomSteps(tokens, other.feeds(), vocabulary));
  Verification verification;
  verification.precision = Coarser(decoder.precision(), other.precision());
  verification.invented = decoder.feeds().invented();
  verification.seed = tokens.seed;
  Answers answers(decoder, twin);
  const auto total = static_cast<int64_t>(steps.size()) + (hard == nullptr ? 0 : hard->Count());
  for (size_t t = 0; t < steps.size(); ++t) {
    KVSHARE_RETURN_IF_ERROR(CheckSamePrompt(steps[t], other_steps[t]));
    KVSHARE_ASSIGN_OR_RETURN(const Tensor logits, answers.Logits(steps[t]));
    KVSHARE_ASSIGN_OR_RETURN(const Tensor expected, other.Logits(other_steps[t]));
    // No sequence is padded: all end at the last token.
    KVSHARE_ASSIGN_OR_RETURN(auto difference, DifferenceOf(NameOfStep(t), logits, expected, {}));
    Add(std::move(difference), total, progress, verification);
  }
  answers.Tell(verification);
  if (hard == nullptr) return verification;
  const auto add = [&](StepDifference difference) { Add(std::move(difference), total, progress, verification); };
  hard->Compare(decoder, other, add, verification.notes);
  return verification;
}

// By what a model with caches of codes is judged beside its logits.
void JudgeCodes(DType precision, CodesCheck& codes) {
  codes.tolerance = kTwinTolerance;
  codes.rounding = RoundingOf(precision);
  codes.right =
      codes.difference <= codes.tolerance && std::ranges::all_of(codes.caches, [&](const CacheRounding& cache) {
        return (cache.alike || cache.share <= codes.rounding) && cache.far == 0;
      });
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
  if (!verification.codes) return;
  JudgeCodes(precision, *verification.codes);
  verification.equal = verification.equal && verification.codes->right;
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

// A decoder, and what its graph tells.
struct Loaded {
  host::Decoder decoder;
  Inspection inspection;
  SessionSetup setup;
};

Result<Loaded> LoadDecoder(const std::string& model_path, const RunOptions& options, const Runtime& runtime) {
  KVSHARE_ASSIGN_OR_RETURN(Inspection inspection, Inspect(model_path));
  KVSHARE_ASSIGN_OR_RETURN(SessionSetup setup, host::SetupFor(inspection, options));
  KVSHARE_ASSIGN_OR_RETURN(std::unique_ptr<Runner> runner, runtime.Load(model_path, setup));
  KVSHARE_ASSIGN_OR_RETURN(host::Decoder decoder,
                           host::Decoder::Create(std::move(runner), host::KnownInputsOf(inspection, options.extents)));
  return Loaded{std::move(decoder), std::move(inspection), std::move(setup)};
}

// The twin of a model whose caches hold codes; nothing where they do not, or the differences are judged by what the
// caller says.
Result<std::unique_ptr<host::Twin>> LoadTwin(const std::string& model_path, const Loaded& loaded,
                                             const VerifyOptions& options, const Runtime& runtime,
                                             std::vector<std::string>& notes) {
  if (options.tolerance || !IsQuantized(loaded.decoder.precision())) return std::unique_ptr<host::Twin>();
  auto twin = MakeFloatTwin(model_path);
  if (!twin.ok()) {
    notes.push_back(fmt::format("codes are not compared with a model in floats: {}", twin.status().message()));
    return std::unique_ptr<host::Twin>();
  }
  if (!*twin) return std::unique_ptr<host::Twin>();
  SessionSetup setup = loaded.setup;
  setup.model = std::move((*twin)->model);
  setup.entries.emplace_back("session.model_external_initializers_file_folder_path",
                             std::filesystem::absolute(model_path).parent_path().string());
  KVSHARE_ASSIGN_OR_RETURN(std::unique_ptr<Runner> runner, runtime.Load(model_path, setup));
  return std::make_unique<host::Twin>(*std::move(*twin), std::move(runner));
}

// Caches that the other model, too, rounds to the same codes by the same scales: whether the scales suit is no question
// of whether the models are equal.
void MarkAlike(const host::Twin& twin, DType codes, const std::string& other_path, const Loaded& other,
               CodesCheck& check) {
  if (other.decoder.precision() != codes) return;
  const auto other_twin = MakeFloatTwin(other_path);
  if (!other_twin.ok() || !*other_twin) return;
  const auto scales_of = [](const std::vector<TwinCache>& caches, const std::string& present) {
    const auto found = std::ranges::find(caches, present, &TwinCache::present);
    return found == caches.end() ? std::vector<float>() : found->scales;
  };
  for (CacheRounding& cache : check.caches)
    cache.alike = scales_of(twin.caches(), cache.present) == scales_of((*other_twin)->caches, cache.present);
}

Result<Verification> Compare(const std::string& model_path, const VerifyOptions& options, const Runtime& runtime) {
  std::vector<std::string> notes;
  const auto verify = [&](Loaded& loaded, host::Twin* twin) -> Result<Verification> {
    if (!options.golden.empty()) {
      KVSHARE_ASSIGN_OR_RETURN(const NamedTensors golden, host::ReadNpz(options.golden + "/golden.npz"));
      return host::VerifyGolden(loaded.decoder, golden, options.progress, twin);
    }
    // The other model stands for the truth: it gets the library only where it cannot do without, and no entries.
    const RunOptions plain{
        .via = Via::kAsNeeded, .library = options.run.library, .entries = {}, .extents = options.run.extents};
    KVSHARE_ASSIGN_OR_RETURN(Loaded other, LoadDecoder(options.against, plain, runtime));
    std::optional<host::HardRuns> hard;
    if (options.hard) {
      KVSHARE_ASSIGN_OR_RETURN(hard, host::HardRuns::Plan(options.tokens, loaded.decoder, loaded.inspection,
                                                          other.decoder, other.inspection));
    }
    KVSHARE_ASSIGN_OR_RETURN(Verification found, host::VerifyAgainst(loaded.decoder, other.decoder, options.tokens,
                                                                     options.progress, twin, hard ? &*hard : nullptr));
    if (found.codes) MarkAlike(*twin, loaded.decoder.precision(), options.against, other, *found.codes);
    return found;
  };
  KVSHARE_ASSIGN_OR_RETURN(Loaded loaded, LoadDecoder(model_path, options.run, runtime));
  KVSHARE_ASSIGN_OR_RETURN(const auto twin, LoadTwin(model_path, loaded, options, runtime, notes));
  auto verification = verify(loaded, twin.get());
  if (verification.ok()) verification->notes.insert(verification->notes.end(), notes.begin(), notes.end());
  return verification;
}

}  // namespace

Result<Verification> Verify(const std::string& model_path, const VerifyOptions& options, const Runtime& runtime) {
  if (options.golden.empty() == options.against.empty())
    return Status::InvalidInput("needs either option 'golden' or option 'against'");
  if (options.hard && options.against.empty())
    return Status::InvalidInput("option 'hard' is for two models; needs option 'against'");
  KVSHARE_ASSIGN_OR_RETURN(Verification verification, Compare(model_path, options, runtime));
  host::Judge(options.tolerance, verification);
  verification.runtime = runtime.version();
  return verification;
}

}  // namespace kvshare
