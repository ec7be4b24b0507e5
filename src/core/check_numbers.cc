// Judges lengths and positions, where the host can read them.
#include <algorithm>
#include <cstdlib>

#include "core/check.h"
#include "core/place_sequences.h"

namespace kvshare {
namespace {

bool InRange(int64_t number, int64_t least, int64_t most) { return least <= number && number <= most; }

// Refuses numbers so large that computing places from them could overflow.
Status CheckMagnitude(const Lengths& lengths, const char* what, int64_t b, std::string_view where) {
  if (!lengths || lengths.kind == Lengths::Kind::kAtEnd) return {};
  const int64_t number = lengths.At(b);
  if (InRange(number, -kMaxTokens, kMaxTokens)) return {};
  return BadCall(where, "{} of batch {} is {}; needs a magnitude of at most {}", what, b, number, kMaxTokens);
}

// `first`: the position of row 0; `rows`: those that are tokens.
Status CheckRotaryPositions(const RotaryView& rotary, const RotaryPositions& positions, int64_t b, int64_t rows,
                            int64_t S, int64_t first, std::string_view where) {
  if (!rotary) return {};
  for (int64_t s = 0; s < rows; ++s) {
    const int64_t position = positions.At(b, s, S, first);
    if (!InRange(position, 0, rotary.max_positions - 1))
      return BadCall(where, "position of token {} of batch {} is {}; needs 0 to {}, the rows of 'cos_cache'", s, b,
                     position, rotary.max_positions - 1);
  }
  return {};
}

Status CheckColumns(const AttentionCall& call, const SequencePlace& place, int64_t b, std::string_view where) {
  if (!call.mask && !call.scores) return CheckMagnitude(call.positions.first_column, "first column", b, where);
  const int64_t first = place.first_column;
  if (call.mask && !InRange(first, 0, call.mask.keys))
    return BadCall(where, "mask of batch {} begins in column {}; needs 0 to {}", b, first, call.mask.keys);
  if (!call.scores) return {};
  if (!InRange(first, 0, call.scores.keys))
    return BadCall(where, "scores of batch {} begin in column {}; needs 0 to {}", b, first, call.scores.keys);
  const int64_t count = call.key_mask ? call.key.tokens : place.length;
  if (count > call.scores.keys - first)
    return BadCall(where, "scores have {} columns; needs {} for the keys of batch {}", call.scores.keys,
                   static_cast<uint64_t>(first) + static_cast<uint64_t>(count), b);  // of two numbers that int64 holds
  return {};
}

Status CheckSequence(const AttentionCall& call, int64_t b, std::string_view where) {
  const Positions& positions = call.positions;
  KVSHARE_RETURN_IF_ERROR(CheckMagnitude(positions.query_position, "position of query row 0", b, where));
  if (!call.key_mask) {  // which numbers keys and queries itself
    const int64_t rows = NumberOr(positions.query_length, b, call.query.tokens);
    if (!InRange(rows, 0, call.query.tokens))
      return BadCall(where, "query length of batch {} is {}; needs 0 to S = {}", b, rows, call.query.tokens);
  }
  if (positions.cache || positions.query_position.kind == Lengths::Kind::kAtEnd) {
    KVSHARE_RETURN_IF_ERROR(CheckMagnitude(positions.length, "length", b, where));
    KVSHARE_RETURN_IF_ERROR(CheckMagnitude(positions.query_length, "query length", b, where));
  }
  const SequencePlace place = PlaceOf(call, b);
  if (!call.key_mask && !InRange(place.length, 0, call.key.tokens))
    return BadCall(where, "length[{}] is {}; needs 0 to {}, the rows of 'key'", b, place.length, call.key.tokens);
  KVSHARE_RETURN_IF_ERROR(CheckColumns(call, place, b, where));
  return CheckRotaryPositions(call.rotary, call.rotary_positions, b, std::min(place.query_length, call.query.tokens),
                              call.query.tokens, place.rotary, where);
}

Status CheckSequence(const AppendCall& call, int64_t b, std::string_view where) {
  const int64_t S = call.fresh.tokens;
  const int64_t past_rows = call.past ? call.past.tokens : 0;
  for (const auto& [lengths, what] : {std::pair{&call.past_length, "past length"},
                                      {&call.fresh_length, "number of new rows"},
                                      {&call.length, "length"},
                                      {&call.skip, "number of rows dropped"}})
    KVSHARE_RETURN_IF_ERROR(CheckMagnitude(*lengths, what, b, where));
  const AppendPlace place = PlaceOf(call, b);
  const int64_t begin = place.past_length;
  if (!InRange(begin, 0, past_rows))
    return BadCall(where, "past length of batch {} is {}; needs 0 to {}, the rows of 'past'", b, begin, past_rows);
  const int64_t most = begin + S;
  const int64_t skip = place.skip;
  if (!InRange(skip, 0, most)) return BadCall(where, "rows dropped of batch {} are {}; needs 0 to {}", b, skip, most);
  // At least what is left of past, at most that and the new rows.
  const int64_t least = std::max<int64_t>(begin - skip, 0);
  if (!InRange(place.length, least, std::min(most - skip, call.present.tokens)))
    return BadCall(where, "length of batch {} is {}; needs {} to {} (past {} + {} new, capacity {})", b, place.length,
                   least, std::min(most - skip, call.present.tokens), begin, S, call.present.tokens);
  // New rows that are kept: the others are not read.
  return CheckRotaryPositions(call.rotary, call.rotary_positions, b, std::min(S, place.length + skip - begin), S,
                              place.rotary, where);
}

}  // namespace

Status CheckNumbers(const AttentionCall& call, std::string_view where) {
  const Positions& p = call.positions;
  for (const Lengths* lengths : {&p.length, &p.query_position, &p.query_length, &p.first_column})
    if (!lengths->OnHost()) return {};
  if (!call.rotary_positions.OnHost()) return {};
  for (int64_t b = 0; b < call.query.batch; ++b) KVSHARE_RETURN_IF_ERROR(CheckSequence(call, b, where));
  return {};
}

Status CheckNumbers(const AppendCall& call, std::string_view where) {
  for (const Lengths* lengths : {&call.past_length, &call.fresh_length, &call.length, &call.skip})
    if (!lengths->OnHost()) return {};
  if (!call.rotary_positions.OnHost()) return {};
  for (int64_t b = 0; b < call.present.batch; ++b) KVSHARE_RETURN_IF_ERROR(CheckSequence(call, b, where));
  return {};
}

}  // namespace kvshare
