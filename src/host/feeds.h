// What a model's inputs are fed with, by their names, types and shapes: a decoder's tokens, mask, positions and states,
// and whatever else a signature asks for.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "kvshare/runner.h"

namespace kvshare::host {

// What a signature does not say of a cache, because its extents have names there.
struct CacheExtents {
  int64_t heads = 0;      // 0: not known
  int64_t head_size = 0;  // 0: not known
  int64_t rows = 0;       // of the first step's past: those that a window-sized cache has from the start
};

// One run of a model: `tokens` new ones for each sequence, behind `past` earlier ones.
struct Step {
  int64_t batch = 1;
  int64_t tokens = 1;
  int64_t past = 0;
  NamedTensors given;              // by input: what is not to be made up, in any integer or float type
  std::vector<int64_t> lens = {};  // of each sequence, the new tokens that are no padding; empty: all
  int64_t total() const { return past + tokens; }
};

enum class Role {
  kIds,         // token ids
  kEmbeddings,  // floats of each token
  kMask,        // 1 for each token so far
  kPositions,   // of the new tokens
  kZeros,       // 0 asks for what is usual: all logits, the first sentence
  kPast,        // the number of earlier tokens
  kTotal,       // the number of tokens so far
  kLast,        // that less one
  kHasPast,     // 1 where there are earlier tokens
  kState,       // what the step before gave: keys, values, states of convolutions and recurrences
  kOther,
};

// What an input is, and its axes: B batch, S new tokens, T tokens so far, ? any; more axes may follow where the role
// has them.
struct Meaning {
  Role role = Role::kOther;
  std::string_view axes;
};

// What is known of inputs beyond their names.
struct KnownInputs {
  std::map<std::string, CacheExtents> caches;  // by past input: from the graph
  std::map<std::string, Meaning> meanings;     // by input: from the nodes that read it
  std::map<std::string, int64_t> named;        // by the name of a symbolic extent, or "<input>.<axis>": from the caller
};

// An extent of an input, for any step.
struct Axis {
  enum class Kind { kGiven, kBatch, kTokens, kTotal, kPast } kind = Kind::kGiven;
  int64_t extent = 0;       // of kGiven
  bool is_made_up = false;  // nothing tells it: a value that is given may have another
  int64_t At(const Step& step) const;
};

struct Feed {
  ValueInfo input;
  Role role = Role::kOther;
  std::vector<Axis> axes;  // kState: those of the first step
  std::string present;     // kState: the output that the next step takes
  std::vector<int64_t> ShapeAt(const Step& step) const;
  bool IsPrompt() const { return role == Role::kIds || role == Role::kEmbeddings; }
};

class Feeds {
 public:
  // kRefused where an input has an extent that neither `known` nor the signature tells, or `known` names none that
  // matters.
  static Result<Feeds> Create(const Signature& signature, const KnownInputs& known);

  const std::vector<Feed>& all() const { return feeds_; }
  bool HasPrompt() const;
  bool HasStates() const;
  // One line for each input or extent that is made up: no rule says what it should be.
  const std::vector<std::string>& invented() const { return invented_; }

  // The values of all inputs but the states. `seed` makes those that are made up. kRefused where one is larger than
  // this machine's memory; kInvalidInput where a given one has another shape than the step, or is of floats where the
  // model takes integers.
  Result<NamedTensors> Make(const Step& step, uint64_t seed) const;
  // The states before the first step: zeros, of no row where they grow.
  Result<NamedTensors> FirstStates(const Step& step) const;

 private:
  std::vector<Feed> feeds_;
  std::vector<std::string> invented_;
};

// The same numbers for the same seed and name on every machine: ids below `vocabulary`, floats that f16 and bf16 hold
// exactly.
Result<Tensor> RandomPrompt(const Feed& feed, const Step& step, uint64_t seed, int64_t vocabulary);

}  // namespace kvshare::host
