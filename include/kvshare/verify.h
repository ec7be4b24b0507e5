// Are a decoder's logits what they should be: of a prefill, then of each decode step.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvshare/runner.h"
#include "kvshare/shapes.h"
#include "kvshare/status.h"

namespace kvshare {

// How kvshare comes into a session.
enum class Via {
  kAsNeeded,  // as operators, where the model imports domain kvshare or an entry begins with "kvshare."
  kEp,        // as an execution provider, which serves the nodes of unchanged models; ONNX Runtime 1.24 or later
  kOps,       // as operators, always; what they replace is for the entries to say
  kDropIn,    // as operators that replace ONNX Runtime's own: session entry kvshare.drop_in is DropInFor the model
};
// The names of those that are asked for; kAsNeeded is what nobody asked for.
inline constexpr std::array<std::pair<std::string_view, Via>, 3> kVias = {
    {{"ep", Via::kEp}, {"ops", Via::kOps}, {"dropin", Via::kDropIn}}};

// How a model is loaded and fed, for Verify and Diagnose.
struct RunOptions {
  Via via = Via::kAsNeeded;
  std::string library;     // kvshare's operator library, for when it is needed
  SessionEntries entries;  // session entries, set before the library is registered
  // Extents that neither the signature nor the graph tells, by the name they have in the signature ("kv_cache_dim"), or
  // by input and axis ("past_conv.0.1").
  std::map<std::string, int64_t> extents;
};

// A random prompt and what is decoded after it; the same seed gives the same tokens on every machine.
struct RandomTokens {
  uint64_t seed = 1;
  int64_t prompt = 24;  // tokens, at least 1
  int64_t steps = 8;    // decode steps of one token each, at most 100,000
};

struct VerifyOptions {
  std::string golden;   // a folder with golden.npz: tokens and the logits they should give; or
  std::string against;  // another model, loaded as needed and without entries: both get the same random tokens
  // The largest |logit - expected| that counts as equal. Without it the model's precision decides: 1e-4 where it
  // computes in f32; where an input or the logits are f16 or bf16, 64 roundings of that type to the row's largest
  // logit: 3 % of it in f16, 25 % in bf16. Where caches hold codes, CodesCheck judges, by the same limits for the model
  // without codes. A model that it cannot read is judged by a share of that logit: 25 % for int8, 75 % for fp8, 150 %
  // for int4.
  std::optional<double> tolerance;
  RandomTokens tokens;
  bool hard = false;  // with `against`: harder prompts too, as far as the inputs allow them (docs/tour.md)
  RunOptions run;

  // Called after each run of the model: runs so far, and in all.
  std::function<void(uint64_t done, uint64_t steps)> progress = {};
};

struct StepDifference {
  std::string step;       // "prefill", "decode 0", ...
  double difference = 0;  // largest |logit - expected|; NaN where either is NaN
  double relative = 0;    // largest |logit - expected| over the largest |expected| of its row; NaN as above
};

// What became of a cache's rows when they were rounded to codes.
struct CacheRounding {
  std::string present;
  double share = 0;  // root mean square of the error over that of the values; a mean of channels that have a scale each
  int64_t far = 0;   // codes that are neither next to their value nor the largest there is
  bool alike = false;  // the model compared with rounds by the same scales: `share` is not judged
};

// A model with caches of codes beside the same model with caches of floats: its twin reads what the codes mean; the
// unrounded one reads the rows as they are, and is the one that expected logits are compared with.
struct CodesCheck {
  double difference = 0;     // largest |logit - twin's logit| over the twin's largest of that row
  StepDifference unrounded;  // the largest of all steps, from the expected logits
  std::vector<CacheRounding> caches;
  double tolerance = 0;           // of `difference`; that of `unrounded` is Verification's
  double rounding = 0;            // of each CacheRounding::share that is judged
  DType precision = DType::kF32;  // the coarsest type of numbers in the unrounded model
  bool right = false;             // difference and shares are within, and no code is far
};

struct Verification {
  std::vector<StepDifference> steps;
  std::vector<std::string> invented;  // what the model was fed that no rule knows, a line each
  std::optional<uint64_t> seed;       // of the random tokens, where there were some
  DType precision = DType::kF32;      // the coarsest type of numbers in inputs, caches and logits
  double tolerance = 0;               // what was judged by: the steps, or with `codes` the unrounded model
  bool relative = false;              // `tolerance` is of StepDifference::relative
  bool equal = false;
  std::optional<CodesCheck> codes;  // judged too, where caches hold codes and no tolerance was given
  std::vector<std::string> notes;   // what was not compared, and why
  std::string runtime;              // "1.32.0"

  // Every difference is a number and at most `tolerance`.
  bool Within(double tolerance) const;
  bool RelativelyWithin(double tolerance) const;
};

// Runs `model_path` in `runtime` and compares. kInvalidInput: a model or golden file that is missing, malformed or of
// another model. kRefused: a model that is no decoder, that has an extent nobody tells, or that `runtime` does not
// take.
Result<Verification> Verify(const std::string& model_path, const VerifyOptions& options, const Runtime& runtime);

}  // namespace kvshare
