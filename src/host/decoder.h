// A decoder model and its states: tokens go in, logits and present.* come out, and each present is the next step's
// past.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "host/feeds.h"
#include "kvshare/verify.h"

namespace kvshare::host {

class Decoder {
 public:
  // Starts with empty states at the first step. kRefused where the runner's model is no such model.
  static Result<Decoder> Create(std::unique_ptr<Runner> runner, const KnownInputs& known);

  // The step's logits [B, S, V]; the states follow. kRefused where the step has a past and the model no state.
  Result<Tensor> Logits(const Step& step);

  // The values of all inputs but the states, as Logits gives them.
  Result<NamedTensors> Inputs(const Step& step) const;
  // What the next step takes, by input; empty before the first.
  const NamedTensors& states() const { return states_; }
  // The next step is the first again.
  void Restart() { states_.clear(); }

  const Feeds& feeds() const { return feeds_; }
  // Token ids that the model surely knows lie in [0, vocabulary).
  int64_t vocabulary() const { return vocabulary_; }
  // The coarsest type of numbers among logits, embeddings and states.
  DType precision() const { return precision_; }

 private:
  Decoder(std::unique_ptr<Runner> runner, Feeds feeds) : runner_(std::move(runner)), feeds_(std::move(feeds)) {}
  std::unique_ptr<Runner> runner_;
  Feeds feeds_;
  int64_t vocabulary_ = 0;
  DType precision_ = DType::kF32;
  NamedTensors states_;  // by input; empty before the first step
};

// The type with the coarser steps of two types of numbers, codes included.
DType Coarser(DType a, DType b);

// Step 0 is the prompt, the others have one token each; batch 1, token ids in [0, vocabulary).
Result<std::vector<Step>> RandomSteps(const RandomTokens& tokens, const Feeds& feeds, int64_t vocabulary);

}  // namespace kvshare::host
