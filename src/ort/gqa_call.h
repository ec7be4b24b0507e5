// A call of GroupQueryAttention before there are views: the rules of its lengths and positions.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "kvshare/call.h"
#include "ort/gqa_inputs.h"

namespace kvshare::ort {

// Where the sequences of a call stand, as rules that every backend can follow. Positions among keys are rows of the
// keys that the queries look at: the present, a borrowed cache, or (staged) all of the past's rows and the new ones.
struct GqaRules {
  Positions positions;
  RotaryPositions rotary;  // where anything is rotated
  int64_t stage_rows = 0;  // where positions.cache.staged: the most rows that takes
  // With window_cache_rows, in place of positions.cache: rows of past that count, and those that are dropped.
  Lengths past_length;
  Lengths skip;
  std::vector<int64_t> numbers;  // what the lengths and rotary positions of this call point to

  bool Staged() const { return positions.cache.staged; }
};

// Reads the rules that seqlens_k, query_seqlens and position_ids give. Judges their numbers in `memory` that the host
// can read; elsewhere the rules serve whatever numbers they may hold.
Result<GqaRules> GqaRulesOf(std::string_view where, const GqaAttributes& attributes, const GqaInputs& inputs,
                            const GqaShape& shape, Memory memory);

}  // namespace kvshare::ort
