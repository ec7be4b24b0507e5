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

// Against the golden logits of a case (golden.npz): the prefill only where position < lens. The file holds an array for
// each input of the model that counts or describes tokens.
// `twin`: where the decoder's caches hold codes, the same decoder in floats, beside which it runs.
Result<Verification> VerifyGolden(Decoder& decoder, const NamedTensors& golden, const VerifyProgress& progress = {},
                                  Twin* twin = nullptr);

// One model against another on the same tokens, and on those of `hard`. kRefused where they do not take the same
// prompt.
Result<Verification> VerifyAgainst(Decoder& decoder, Decoder& other, const RandomTokens& tokens,
                                   const VerifyProgress& progress = {}, Twin* twin = nullptr,
                                   const HardRuns* hard = nullptr);

// Fills in by what the differences are judged, and the judgement.
void Judge(std::optional<double> tolerance, Verification& verification);

}  // namespace kvshare::host
