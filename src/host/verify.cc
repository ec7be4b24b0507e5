#include "kvshare/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>

#include "host/comparison.h"
#include "host/model_facts.h"
#include "host/npz.h"

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
  std::unique_ptr<host::Twin> twin;  // where the decoder's caches hold codes, and codes are judged

  host::Judged AsJudged() { return {&decoder, twin.get()}; }
};

Result<Loaded> LoadDecoder(const std::string& model_path, const RunOptions& options, const Runtime& runtime) {
  KVSHARE_ASSIGN_OR_RETURN(Inspection inspection, Inspect(model_path));
  KVSHARE_ASSIGN_OR_RETURN(SessionSetup setup, host::SetupFor(inspection, options));
  KVSHARE_ASSIGN_OR_RETURN(std::unique_ptr<Runner> runner, runtime.Load(model_path, setup));
  KVSHARE_ASSIGN_OR_RETURN(host::Decoder decoder,
                           host::Decoder::Create(std::move(runner), host::KnownInputsOf(inspection, options.extents)));
  return Loaded{std::move(decoder), std::move(inspection), std::move(setup), nullptr};
}

// Gives a decoder whose caches hold codes its twin; none, and a note, where it has none.
Status LoadTwin(const std::string& model_path, const VerifyOptions& options, const Runtime& runtime, Loaded& loaded,
                std::vector<std::string>& notes) {
  if (!IsQuantized(loaded.decoder.precision())) return {};
  auto twin = MakeFloatTwin(model_path);
  if (!twin.ok()) {
    notes.push_back(fmt::format("codes are not compared with a model in floats: {}", twin.status().message()));
    return {};
  }
  if (!*twin) return {};
  SessionSetup setup = loaded.setup;
  setup.entries.emplace_back("session.model_external_initializers_file_folder_path",
                             std::filesystem::absolute(model_path).parent_path().string());
  setup.model = std::move((*twin)->model);
  KVSHARE_ASSIGN_OR_RETURN(std::unique_ptr<Runner> reader, runtime.Load(model_path, setup));
  setup.model = std::move((*twin)->unrounded);
  KVSHARE_ASSIGN_OR_RETURN(std::unique_ptr<Runner> runner, runtime.Load(model_path, setup));
  KVSHARE_ASSIGN_OR_RETURN(
      host::Decoder unrounded,
      host::Decoder::Create(std::move(runner), host::KnownInputsOf(loaded.inspection, options.run.extents)));
  loaded.twin = std::make_unique<host::Twin>(*std::move(*twin), std::move(reader), std::move(unrounded));
  return {};
}

// Caches that the other model, too, rounds to the same codes by the same scales: whether the scales suit is no question
// of whether the models are equal.
void MarkAlike(const Loaded& model, const Loaded& other, CodesCheck& check) {
  if (other.twin == nullptr || other.decoder.precision() != model.decoder.precision()) return;
  const auto scales_of = [](const Loaded& loaded, const std::string& present) {
    const auto& caches = loaded.twin->caches();
    const auto found = std::ranges::find(caches, present, &TwinCache::present);
    return found == caches.end() ? std::vector<float>() : found->scales;
  };
  for (CacheRounding& cache : check.caches)
    cache.alike = scales_of(model, cache.present) == scales_of(other, cache.present);
}

Result<Verification> CompareModels(Loaded& model, const VerifyOptions& options, const Runtime& runtime,
                                   std::vector<std::string>& notes) {
  // The other model stands for the truth: it gets the library only where it cannot do without, and no entries.
  const RunOptions plain{
      .via = Via::kAsNeeded, .library = options.run.library, .entries = {}, .extents = options.run.extents};
  KVSHARE_ASSIGN_OR_RETURN(Loaded other, LoadDecoder(options.against, plain, runtime));
  if (model.twin) {
    KVSHARE_RETURN_IF_ERROR(LoadTwin(options.against, options, runtime, other, notes));
    if (IsQuantized(other.decoder.precision()) && !other.twin) model.twin.reset();
  }
  const host::Judged judged = model.AsJudged();
  const host::Judged truth = other.AsJudged();
  std::optional<host::HardRuns> hard;
  if (options.hard) {
    KVSHARE_ASSIGN_OR_RETURN(hard, host::HardRuns::Plan(options.tokens, judged.Unrounded(), model.inspection,
                                                        truth.Unrounded(), other.inspection));
  }
  KVSHARE_ASSIGN_OR_RETURN(Verification found, host::VerifyAgainst(judged, truth, options.tokens, options.progress,
                                                                   hard ? &*hard : nullptr));
  if (found.codes) MarkAlike(model, other, *found.codes);
  return found;
}

Result<Verification> Compare(const std::string& model_path, const VerifyOptions& options, const Runtime& runtime) {
  std::vector<std::string> notes;
  KVSHARE_ASSIGN_OR_RETURN(Loaded model, LoadDecoder(model_path, options.run, runtime));
  if (!options.tolerance) KVSHARE_RETURN_IF_ERROR(LoadTwin(model_path, options, runtime, model, notes));
  Verification found;
  if (options.golden.empty()) {
    KVSHARE_ASSIGN_OR_RETURN(found, CompareModels(model, options, runtime, notes));
  } else {
    KVSHARE_ASSIGN_OR_RETURN(const NamedTensors golden, host::ReadNpz(options.golden + "/golden.npz"));
    KVSHARE_ASSIGN_OR_RETURN(found, host::VerifyGolden(model.AsJudged(), golden, options.progress));
  }
  found.notes.insert(found.notes.end(), notes.begin(), notes.end());
  return found;
}

// What no model can make right.
Status CheckOptions(const VerifyOptions& options) {
  if (options.golden.empty() == options.against.empty())
    return Status::InvalidInput("needs either option 'golden' or option 'against'");
  if (options.hard && options.against.empty())
    return Status::InvalidInput("option 'hard' is for two models; needs option 'against'");
  if (options.tolerance && !(std::isfinite(*options.tolerance) && *options.tolerance >= 0))
    return Status::InvalidInput(
        fmt::format("option 'tolerance' = '{}': needs a finite number of at least 0", *options.tolerance));
  if (options.tokens.prompt < 1)
    return Status::InvalidInput(fmt::format("option 'prompt' = '{}': needs at least 1 token", options.tokens.prompt));
  constexpr int64_t kMostSteps = 100'000;
  if (options.tokens.steps < 0 || options.tokens.steps > kMostSteps)
    return Status::InvalidInput(
        fmt::format("option 'steps' = '{}': needs 0 to {} decode steps", options.tokens.steps, kMostSteps));
  return {};
}

}  // namespace

Result<Verification> Verify(const std::string& model_path, const VerifyOptions& options, const Runtime& runtime) {
  KVSHARE_RETURN_IF_ERROR(CheckOptions(options));
  KVSHARE_ASSIGN_OR_RETURN(Verification verification, Compare(model_path, options, runtime));
  host::Judge(options.tolerance, verification);
  verification.runtime = runtime.version();
  return verification;
}

}  // namespace kvshare
