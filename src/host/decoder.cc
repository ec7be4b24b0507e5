#include "host/decoder.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

namespace kvshare::host {
namespace {

constexpr std::string_view kPast = "past_key_values";
// For a model whose logits do not say how many tokens it knows.
constexpr int64_t kSmallVocabulary = 16;

bool Has(const std::vector<ValueInfo>& values, const std::string& name) {
  return std::any_of(values.begin(), values.end(), [&](const ValueInfo& v) { return v.name == name; });
}

// "past_key_values.3.key" -> "present.3.key"
std::string PresentOf(std::string past) { return past.replace(0, kPast.size(), "present"); }

// `tensor` with its integers as `type`: models take their ids as int64 or int32.
Tensor As(DType type, const Tensor& tensor) {
  if (type == tensor.type) return tensor;
  std::vector<int64_t> values(static_cast<size_t>(tensor.Elements()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int64_t>(tensor.At(static_cast<int64_t>(i)));
  return Tensor::Integers(type, tensor.shape, values);
}

}  // namespace

Result<Decoder> Decoder::Create(Session session, Caches caches) {
  Decoder decoder(std::move(session));
  decoder.caches_ = std::move(caches);
  const auto& inputs = decoder.session_.inputs();
  const auto& outputs = decoder.session_.outputs();
  for (const char* name : {"input_ids", "attention_mask"}) {
    if (!Has(inputs, name))
      return Status::Refused(fmt::format("the model has no input '{}': not a decoder with a cache", name));
  }
  const auto logits =
      std::find_if(outputs.begin(), outputs.end(), [](const ValueInfo& v) { return v.name == "logits"; });
  if (logits == outputs.end()) return Status::Refused("the model has no output 'logits': not a decoder with a cache");
  const int64_t last = logits->shape.empty() ? -1 : logits->shape.back();
  decoder.vocabulary_ = last > 0 ? last : kSmallVocabulary;
  for (const ValueInfo& input : inputs) {
    if (input.name == "input_ids" || input.name == "attention_mask" || input.name == "position_ids") continue;
    if (!input.name.starts_with(kPast)) {
      return Status::Refused(fmt::format(
          "input '{}' is none of input_ids, attention_mask, position_ids and past_key_values.*", input.name));
    }
    int64_t& head_size = decoder.caches_[input.name].head_size;
    if (input.shape.size() == 4 && input.shape[3] >= 0) {
      head_size = input.shape[3];
    } else if (input.type == DType::kI4) {
      head_size = (head_size + 1) / 2;  // two channels an element
    }
    if (input.shape.size() != 4 || input.shape[1] < 0 || head_size <= 0) {
      return Status::Refused(
          fmt::format("input '{}' has shape {}; needs [batch, heads, past, head size] with fixed "
                      "heads and head size",
                      input.name, ShapeText(input.shape)));
    }
    const std::string present = PresentOf(input.name);
    if (!Has(outputs, present))
      return Status::Refused(fmt::format("input '{}' has no output '{}'", input.name, present));
    decoder.pasts_.emplace(present, input);
  }
  return decoder;
}

Result<Tensor> Decoder::Step(const DecoderStep& step) {
  if (pasts_.empty() && step.mask.shape[1] > step.ids.shape[1])
    return Status::Refused(
        "the model has no input past_key_values.* to go on with after a prefill; needs one, or 0 decode steps (--steps "
        "0)");
  const std::map<std::string, const Tensor*> given = {
      {"input_ids", &step.ids}, {"attention_mask", &step.mask}, {"position_ids", &step.positions}};
  NamedTensors feeds = std::move(cache_);
  cache_.clear();
  for (const ValueInfo& input : session_.inputs()) {
    if (const auto value = given.find(input.name); value != given.end()) {
      feeds[input.name] = As(input.type, *value->second);
    } else if (!feeds.contains(input.name)) {
      const CacheExtents& cache = caches_.at(input.name);
      feeds[input.name] = Tensor::Zeros(input.type, {step.ids.shape[0], input.shape[1], cache.rows, cache.head_size});
    }
  }
  KVSHARE_ASSIGN_OR_RETURN(NamedTensors outputs, session_.Run(feeds));
  for (const auto& [present, past] : pasts_) cache_[past.name] = std::move(outputs[present]);
  return std::move(outputs["logits"]);
}

std::vector<DecoderStep> RandomSteps(const RandomTokens& tokens, int64_t vocabulary) {
  std::mt19937_64 random(tokens.seed);  // its numbers are the same on every machine; a distribution's are not
  std::vector<DecoderStep> steps;
  int64_t past = 0;
  for (int64_t t = 0; t <= tokens.steps; ++t) {
    const int64_t fresh = t == 0 ? tokens.prompt : 1;
    std::vector<int64_t> ids;
    std::vector<int64_t> positions;
    for (int64_t s = 0; s < fresh; ++s) {
      ids.push_back(static_cast<int64_t>(random() % static_cast<uint64_t>(vocabulary)));
      positions.push_back(past + s);
    }
    past += fresh;
    steps.push_back({Tensor::Integers(DType::kI64, {1, fresh}, ids),
                     Tensor::Integers(DType::kI64, {1, past}, std::vector<int64_t>(static_cast<size_t>(past), 1)),
                     Tensor::Integers(DType::kI64, {1, fresh}, positions)});
  }
  return steps;
}

}  // namespace kvshare::host
