#include "host/hard_runs.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "host/differences.h"

namespace kvshare::host {
namespace {

int64_t LargestWindow(const Inspection& inspection) {
  int64_t window = 0;
  for (const AttentionLayer& layer : inspection.layers) window = std::max(window, layer.window);
  return window;
}

Padding PaddingOf(const Inspection& inspection) {
  const bool counts = std::ranges::any_of(inspection.layers, [](const AttentionLayer& layer) {
    return layer.kind == LayerKind::kOwn && layer.form == LayerForm::kGroupQueryAttention;
  });
  return counts ? Padding::kCompact : Padding::kBehind;
}

std::string NameOf(const std::string& runs, size_t t) {
  return t == 0 ? fmt::format("{} prefill", runs) : fmt::format("{} step {}", runs, t);
}

// All answers of one model, from its first step on.
Result<std::vector<Tensor>> AnswersOf(Decoder& decoder, const Runs& runs) {
  decoder.Restart();
  std::vector<Tensor> answers;
  for (const Step& step : runs.steps) {
    KVSHARE_ASSIGN_OR_RETURN(Tensor logits, decoder.Logits(step));
    answers.push_back(std::move(logits));
  }
  return answers;
}

// [B, 1, V]: the last row of each sequence's own logits [1, S, V].
Tensor LastOfEach(const std::vector<const Tensor*>& alone) {
  Tensor last = Tensor::Zeros(alone.front()->type, {static_cast<int64_t>(alone.size()), 1, alone.front()->shape[2]});
  const size_t bytes = last.data.size() / alone.size();
  for (size_t b = 0; b < alone.size(); ++b)
    std::copy(alone[b]->data.end() - static_cast<std::ptrdiff_t>(bytes), alone[b]->data.end(),
              last.data.begin() + static_cast<std::ptrdiff_t>(b * bytes));
  return last;
}

// The answers that two sequences should give in one batch, from runs of each alone.
Result<std::vector<Tensor>> AnswersAlone(Decoder& decoder, const RaggedRuns& runs) {
  std::vector<std::vector<Tensor>> alone;
  for (const Runs& each : runs.alone) {
    KVSHARE_ASSIGN_OR_RETURN(auto answers, AnswersOf(decoder, each));
    alone.push_back(std::move(answers));
  }
  std::vector<Tensor> together;
  for (size_t t = 0; t < runs.together.steps.size(); ++t) {
    std::vector<const Tensor*> at_step;
    for (const auto& answers : alone) at_step.push_back(&answers[t]);
    together.push_back(LastOfEach(at_step));
  }
  return together;
}

using Add = std::function<void(StepDifference)>;

void CompareAnswers(Decoder& decoder, const Runs& runs, const Result<std::vector<Tensor>>& expected, const Add& add,
                    std::vector<std::string>& notes) {
  if (!expected.ok()) {
    notes.push_back(fmt::format("{}: not compared, as the other model does not take it: {}", runs.name,
                                expected.status().message()));
    return;
  }
  const auto fail = [&](size_t t, const std::string& why) {
    notes.push_back(fmt::format("{}: {}", NameOf(runs.name, t), why));
    const double nan = std::numeric_limits<double>::quiet_NaN();
    add({NameOf(runs.name, t), nan, nan});
  };
  decoder.Restart();
  for (size_t t = 0; t < runs.steps.size(); ++t) {
    const auto logits = decoder.Logits(runs.steps[t]);
    if (!logits.ok()) return fail(t, logits.status().message());
    auto difference = DifferenceOf(NameOf(runs.name, t), *logits, (*expected)[t], runs.steps[t].lens);
    if (!difference.ok()) return fail(t, difference.status().message());
    add(*std::move(difference));
  }
}

}  // namespace

Result<HardRuns> HardRuns::Plan(const RandomTokens& tokens, const Decoder& decoder, const Inspection& inspection,
                                const Decoder& other, const Inspection& other_inspection) {
  HardModel model{.window = std::max(LargestWindow(inspection), LargestWindow(other_inspection)),
                  .vocabulary = std::min(decoder.vocabulary(), other.vocabulary()),
                  .padding = PaddingOf(inspection)};
  HardRuns hard;
  KVSHARE_ASSIGN_OR_RETURN(const auto runs, HardPrompts(tokens, decoder.feeds(), model));
  KVSHARE_ASSIGN_OR_RETURN(const auto other_runs, HardPrompts(tokens, other.feeds(), model));
  for (const Runs& each : runs)
    for (const Runs& same : other_runs)
      if (same.name == each.name) hard.pairs_.push_back({each, same});
  KVSHARE_ASSIGN_OR_RETURN(auto ragged, RaggedPrompt(tokens, decoder.feeds(), model));
  const Padding padding = model.padding;
  model.padding = PaddingOf(other_inspection);
  KVSHARE_ASSIGN_OR_RETURN(auto other_ragged, RaggedPrompt(tokens, other.feeds(), model));
  if (ragged && other_ragged)
    hard.ragged_ = Ragged{*std::move(ragged), *std::move(other_ragged), padding == model.padding};
  return hard;
}

int64_t HardRuns::Count() const {
  size_t count = ragged_ ? ragged_->runs.together.steps.size() : 0;
  for (const Pair& pair : pairs_) count += pair.runs.steps.size();
  return static_cast<int64_t>(count);
}

void HardRuns::Compare(Decoder& decoder, Decoder& other, const Add& add, std::vector<std::string>& notes) const {
  for (const Pair& pair : pairs_) CompareAnswers(decoder, pair.runs, AnswersOf(other, pair.other), add, notes);
  if (!ragged_) return;
  const Ragged& ragged = *ragged_;
  CompareAnswers(decoder, ragged.runs.together,
                 ragged.alike ? AnswersOf(other, ragged.other.together) : AnswersAlone(other, ragged.other), add,
                 notes);
}

}  // namespace kvshare::host
