// One model against another on prompts that are harder than random ones.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "host/hard_prompts.h"
#include "kvshare/rewrite.h"

namespace kvshare::host {

class HardRuns {
 public:
  // Those that the signatures of both models allow.
  static Result<HardRuns> Plan(const RandomTokens& tokens, const Decoder& decoder, const Inspection& inspection,
                               const Decoder& other, const Inspection& other_inspection);

  // Steps in all, at most.
  int64_t Count() const;

  // Hands the difference of each step to `add`. What `other` does not take is told in `notes`; what `decoder` alone
  // does not take differs by NaN.
  void Compare(Decoder& decoder, Decoder& other, const std::function<void(StepDifference)>& add,
               std::vector<std::string>& notes) const;

 private:
  struct Pair {
    Runs runs;
    Runs other;
  };
  // Two sequences at once, against each alone where the models place new tokens in other ways.
  struct Ragged {
    RaggedRuns runs;
    RaggedRuns other;
    bool alike = false;
  };

  std::vector<Pair> pairs_;
  std::optional<Ragged> ragged_;
};

}  // namespace kvshare::host
