// The comparisons behind Verify: the differences of each step.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "host/decoder.h"
#include "host/hard_runs.h"
#include "host/twin.h"
#include "kvshare/verify.h"

namespace kvshare::host {

// VerifyOptions::progress.
using VerifyProgress = std::function<void(uint64_t done, uint64_t steps)>;

// A model, and its twin where its caches hold codes and it has one.
struct Judged {
  Decoder* decoder = nullptr;
  Twin* twin = nullptr;

  // The decoder whose logits are compared with golden ones or another model's.
  Decoder& Unrounded() const { return twin == nullptr ? *decoder : twin->unrounded(); }
};

// Against the golden logits of a case (golden.npz): the prefill only where position < lens. The file holds an array for
// each input of the model that counts or describes tokens.
// A model with a twin runs beside it; the golden logits are then for the unrounded one to meet.
Result<Verification> VerifyGolden(const Judged& model, const NamedTensors& golden, const VerifyProgress& progress = {});

// One model against another on the same tokens, and on those of `hard`, which are planned for what is unrounded.
// kRefused where they do not take the same prompt.
Result<Verification> VerifyAgainst(const Judged& model, const Judged& other, const RandomTokens& tokens,
                                   const VerifyProgress& progress = {}, const HardRuns* hard = nullptr);

// Fills in by what the differences are judged, and the judgement.
void Judge(std::optional<double> tolerance, Verification& verification);

}  // namespace kvshare::host
