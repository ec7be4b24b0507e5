// A decoder model in a session, with its cache: input_ids, attention_mask, position_ids and past_key_values.* go in,
// logits and present.* come out, and each present is the next step's past.
#pragma once

#include <map>
#include <string>

#include "host/ort_host.h"

namespace kvshare::host {

// The new tokens of one step, int64: ids and positions [B, S], mask [B, T].
struct DecoderStep {
  Tensor ids;
  Tensor mask;
  Tensor positions;
};

// What a model's inputs do not say of a cache.
struct CacheExtents {
  int64_t head_size = 0;  // for a symbolic last extent; 0: not known
  int64_t rows = 0;       // of the first step's past: those that a window-sized cache has from the start
};
using Caches = std::map<std::string, CacheExtents>;  // by past input

class Decoder {
 public:
  // Starts with an empty cache at the first step. kRefused where `session` is no such model.
  static Result<Decoder> Create(Session session, Caches caches = {});

  // The step's logits [B, S, V]; the cache grows by S. kRefused where T > S and the model has no cache.
  Result<Tensor> Step(const DecoderStep& step);

  // Token ids that the model surely knows lie in [0, vocabulary).
  int64_t vocabulary() const { return vocabulary_; }

 private:
  explicit Decoder(Session session) : session_(std::move(session)) {}
  Session session_;
  int64_t vocabulary_ = 0;
  std::map<std::string, ValueInfo> pasts_;  // past input by the output that follows it
  Caches caches_;
  NamedTensors cache_;  // by past input; empty before the first step
};

// The shape of a random prompt and what is decoded after it; the same seed gives the same tokens.
struct RandomTokens {
  uint64_t seed = 1;
  int64_t prompt = 24;
  int64_t steps = 8;
};

// Step 0 is the prompt, the others have one token each; batch 1, token ids in [0, vocabulary).
std::vector<DecoderStep> RandomSteps(const RandomTokens& tokens, int64_t vocabulary);

}  // namespace kvshare::host
