#include "kvshare/calibrate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "host/model_facts.h"
#include "host/npz.h"

namespace kvshare {
namespace {

using host::Feed;
using host::Feeds;
using host::Role;
using host::Step;

using Largest = std::map<std::string, std::vector<float>>;

// One step of all tokens of `arrays`, from which it takes what is an input.
Result<Step> PromptOf(NamedTensors arrays, const Feeds& feeds, const std::string& file) {
  Step step;
  bool has_tokens = false;
  for (const Feed& feed : feeds.all()) {
    const auto array = arrays.find(feed.input.name);
    if (array == arrays.end() || feed.role == Role::kState) continue;
    if (feed.IsPrompt() && !has_tokens) {
      if (array->second.shape.size() < 2)
        return Status::InvalidInput(fmt::format("{}: '{}' has shape {}; needs [B, S, ...]", file, feed.input.name,
                                                ShapeText(array->second.shape)));
      step.batch = array->second.shape[0];
      step.tokens = array->second.shape[1];
      has_tokens = step.batch > 0 && step.tokens > 0;
    }
    step.given[feed.input.name] = std::move(array->second);
  }
  if (!has_tokens)
    return Status::InvalidInput(
        fmt::format("{}: has no tokens; needs an array 'input_ids' or 'inputs_embeds', as the model has it", file));
  return step;
}

// The largest magnitude of each of the Hkv * D channels of `present`, [B, Hkv, T, D].
Result<std::vector<float>> LargestOf(const std::string& name, const Tensor& present) {
  const int64_t heads = present.shape[1];
  const int64_t rows = present.shape[2];
  const int64_t D = present.shape[3];
  std::vector<float> largest(static_cast<size_t>(heads * D), 0);
  for (int64_t i = 0; i < present.Elements(); ++i) {
    const auto value = static_cast<float>(std::fabs(present.At(i)));
    if (!std::isfinite(value))
      return Status::Refused(fmt::format("output '{}' is not finite on these inputs; no scale represents it", name));
    float& channel = largest[static_cast<size_t>(i / (rows * D) % heads * D + i % D)];
    channel = std::max(channel, value);
  }
  return largest;
}

Result<Largest> LargestOf(const Feeds& feeds, const NamedTensors& outputs) {
  Largest largest;
  for (const Feed& feed : feeds.all()) {
    const auto present = outputs.find(feed.present);
    if (feed.role != Role::kState || present == outputs.end()) continue;
    if (!IsFloat(present->second.type) || present->second.shape.size() != 4) continue;
    KVSHARE_ASSIGN_OR_RETURN(largest[feed.present], LargestOf(feed.present, present->second));
  }
  if (largest.empty()) return Status::Refused("no output is a present of floats [B, Hkv, T, D]; nothing to calibrate");
  return largest;
}

}  // namespace

Result<Largest> Calibrate(const std::string& model_path, const std::string& inputs, const RunOptions& options,
                          const Runtime& runtime) {
  KVSHARE_ASSIGN_OR_RETURN(NamedTensors arrays, host::ReadNpz(inputs));
  KVSHARE_ASSIGN_OR_RETURN(const Inspection inspection, Inspect(model_path));
  KVSHARE_ASSIGN_OR_RETURN(const SessionSetup setup, host::SetupFor(inspection, options));
  KVSHARE_ASSIGN_OR_RETURN(const std::unique_ptr<Runner> runner, runtime.Load(model_path, setup));
  KVSHARE_ASSIGN_OR_RETURN(const Feeds feeds,
                           Feeds::Create(runner->Describe(), host::KnownInputsOf(inspection, options.extents)));
  KVSHARE_ASSIGN_OR_RETURN(const Step step, PromptOf(std::move(arrays), feeds, inputs));
  constexpr uint64_t kSeed = 1;  // of what is made up
  auto made = feeds.Make(step, kSeed);
  if (!made.ok()) return Status(made.status().code(), fmt::format("{}: {}", inputs, made.status().message()));
  NamedTensors values = *std::move(made);
  KVSHARE_ASSIGN_OR_RETURN(NamedTensors states, feeds.FirstStates(step));
  values.merge(std::move(states));
  KVSHARE_ASSIGN_OR_RETURN(const NamedTensors outputs, runner->Run(values));
  return LargestOf(feeds, outputs);
}

}  // namespace kvshare
