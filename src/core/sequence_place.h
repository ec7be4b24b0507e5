// Where one sequence of a call stands: what the rules of its lengths come to (place_sequences.h). For kernels, which
// are told no more.
#pragma once

#include <cstdint>

#include "kvshare/call.h"

namespace kvshare {

struct SequencePlace {
  int64_t length = 0;          // valid keys
  int64_t query_position = 0;  // of row 0, among the keys
  int64_t query_length = 0;    // query rows that are tokens
  int64_t first_column = 0;    // of mask and scores: the column of key 0
  int64_t rotary = 0;          // position of row 0 in the sequence

  // The rotary position of query row s of sequence b. Padding has none, and takes 0.
  int64_t RotaryOf(const AttentionCall& call, int64_t b, int64_t s) const {
    return s < query_length ? call.rotary_positions.At(b, s, call.query.tokens, rotary) : 0;
  }
};

struct AppendPlace {
  int64_t past_length = 0;  // rows of past that the new ones follow
  int64_t length = 0;       // rows of present afterwards
  int64_t skip = 0;         // rows dropped from the front of both
  int64_t rotary = 0;       // position of new row 0 in the sequence
};

}  // namespace kvshare
