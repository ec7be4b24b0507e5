// Prompts that are harder than random ones, for one model against another.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "host/decoder.h"

namespace kvshare::host {

// Where an own layer puts the new token of a sequence whose prompt was padded behind.
enum class Padding {
  kCompact,  // right after its last kept token: GroupQueryAttention
  kBehind,   // behind the padding: Attention
};

// What is known of both models.
struct HardModel {
  int64_t window = 0;  // keys, the largest of any layer; 0: none has one
  int64_t vocabulary = 0;
  Padding padding = Padding::kBehind;
};

// Runs of one model, from its first step on.
struct Runs {
  std::string name;
  std::vector<Step> steps;
};

// Where the signature allows them, of one sequence:
//   extremes   tokens from both ends of the vocabulary, and one many times; of embeddings a first token and one channel
//              that are 64 times as large
//   long       a prompt of more than two windows, then single tokens
//   chunks     a prompt in pieces, around the window's size
Result<std::vector<Runs>> HardPrompts(const RandomTokens& tokens, const Feeds& feeds, const HardModel& model);

// Two sequences of other lengths, padded behind: `together`, and each `alone`. Nothing where the signature does not say
// which tokens are padding.
struct RaggedRuns {
  Runs together;
  std::vector<Runs> alone;
};
Result<std::optional<RaggedRuns>> RaggedPrompt(const RandomTokens& tokens, const Feeds& feeds, const HardModel& model);

}  // namespace kvshare::host
