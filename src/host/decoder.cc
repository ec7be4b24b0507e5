#include "host/decoder.h"

#include <fmt/format.h>

#include <algorithm>

namespace kvshare::host {
namespace {

// For a model whose logits do not say how many tokens it knows.
constexpr int64_t kSmallVocabulary = 16;
constexpr const char* kLogits = "logits";

const ValueInfo* Find(const std::vector<ValueInfo>& values, const std::string& name) {
  const auto found = std::find_if(values.begin(), values.end(), [&](const ValueInfo& v) { return v.name == name; });
  return found == values.end() ? nullptr : &*found;
}

}  // namespace

DType Coarser(DType a, DType b) {
  for (const DType type : {DType::kI4, DType::kF8E4M3, DType::kI8, DType::kBF16, DType::kF16})
    if (a == type || b == type) return type;
  return DType::kF32;
}

Result<Decoder> Decoder::Create(std::unique_ptr<Runner> runner, const KnownInputs& known) {
  const Signature& signature = runner->Describe();
  const ValueInfo* logits = Find(signature.outputs, kLogits);
  if (logits == nullptr) return Status::Refused("the model has no output 'logits': not a decoder");
  KVSHARE_ASSIGN_OR_RETURN(Feeds feeds, Feeds::Create(signature, known));
  if (!feeds.HasPrompt())
    return Status::Refused("the model has no input 'input_ids' or 'inputs_embeds': not a decoder");
  const int64_t last = logits->shape.empty() ? -1 : logits->shape.back();
  DType precision = Coarser(DType::kF32, logits->type);
  for (const Feed& feed : feeds.all())
    if (feed.role == Role::kState || !IsQuantized(feed.input.type)) precision = Coarser(precision, feed.input.type);
  Decoder decoder(std::move(runner), std::move(feeds));
  decoder.vocabulary_ = last > 0 ? last : kSmallVocabulary;
  decoder.precision_ = precision;
  return decoder;
}

Result<NamedTensors> Decoder::Inputs(const Step& step) const {
  constexpr uint64_t kSameForAllModels = 1;
  return feeds_.Make(step, kSameForAllModels);
}

Result<Tensor> Decoder::Logits(const Step& step) {
  if (step.past > 0 && !feeds_.HasStates())
    return Status::Refused(
        "the model has no input past_key_values.* to go on with after a prefill; needs one, or option 'steps' = '0'");
  NamedTensors states = std::move(states_);
  states_.clear();
  if (states.empty()) {
    KVSHARE_ASSIGN_OR_RETURN(states, feeds_.FirstStates(step));
  }
  KVSHARE_ASSIGN_OR_RETURN(NamedTensors values, Inputs(step));
  values.merge(std::move(states));
  KVSHARE_ASSIGN_OR_RETURN(NamedTensors outputs, runner_->Run(values));
  for (const Feed& feed : feeds_.all())
    if (feed.role == Role::kState) states_[feed.input.name] = std::move(outputs[feed.present]);
  return std::move(outputs[kLogits]);
}

Result<std::vector<Step>> RandomSteps(const RandomTokens& tokens, const Feeds& feeds, int64_t vocabulary) {
  std::vector<Step> steps;
  int64_t past = 0;
  for (int64_t t = 0; t <= tokens.steps; ++t) {
    Step step{.batch = 1, .tokens = t == 0 ? tokens.prompt : 1, .past = past, .given = {}, .lens = {}};
    for (const Feed& feed : feeds.all()) {
      if (!feed.IsPrompt()) continue;
      KVSHARE_ASSIGN_OR_RETURN(step.given[feed.input.name], RandomPrompt(feed, step, tokens.seed, vocabulary));
    }
    past = step.total();
    steps.push_back(std::move(step));
  }
  return steps;
}

}  // namespace kvshare::host
