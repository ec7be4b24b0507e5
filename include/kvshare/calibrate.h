// The largest values that a decoder's caches take in one run on given tokens.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kvshare/runner.h"
#include "kvshare/status.h"
#include "kvshare/verify.h"

namespace kvshare {

// Runs the model once on a prompt: `inputs` is a .npz file of its arrays by the names of the model's inputs, input_ids
// [B, S] or inputs_embeds at least; other arrays of the file are not used, and inputs that it lacks are made up as for
// Verify. The result is KvCache::largest: by present [B, Hkv, T, D] of floats, the largest magnitude of each of its
// Hkv * D channels. Padding counts as tokens do. kInvalidInput: a file or a model that is missing or malformed, or no
// tokens. kRefused: a model that is no decoder, or whose caches hold no floats, and what `runtime` does not take.
Result<std::map<std::string, std::vector<float>>> Calibrate(const std::string& model_path, const std::string& inputs,
                                                            const RunOptions& options, const Runtime& runtime);

}  // namespace kvshare
