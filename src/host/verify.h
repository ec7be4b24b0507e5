// Are a model's logits what they should be: prefill, then each decode step.
#pragma once

#include <string>
#include <vector>

#include "host/decoder.h"

namespace kvshare::host {

struct StepDifference {
  std::string step;       // "prefill", "decode 0", ...
  double difference = 0;  // largest |logit - expected|; NaN where either is NaN
};

struct Verification {
  std::vector<StepDifference> steps;
  // Every difference is a number and at most `tolerance`.
  bool Within(double tolerance) const;
};

// Against the golden logits of a case (golden.npz): the prefill only where position < lens.
Result<Verification> VerifyGolden(Decoder& decoder, const NamedTensors& golden);

// One model against another on the same tokens.
Result<Verification> VerifyAgainst(Decoder& decoder, Decoder& other, const RandomTokens& tokens);

}  // namespace kvshare::host
