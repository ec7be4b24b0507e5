// From the rules of a call's lengths (kvshare/lengths.h) to places. Pure arithmetic, so that a device computes the same
// from numbers in its own memory.
#pragma once

#include <cstdint>

#include "core/sequence_place.h"
#include "kvshare/call.h"

namespace kvshare {

// What a window-sized cache holds before and after a call that takes a sequence from `before` to T tokens.
struct WindowPlace {
  int64_t held_before = 0;
  int64_t held = 0;
  int64_t first = 0;  // position of row 0 afterwards
  int64_t skip = 0;   // rows of held_before and the new ones that are dropped
};

// Rows that a window-sized cache holds after T tokens.
constexpr int64_t ResidentRows(const WindowCache& cache, int64_t T) {
  if (T <= cache.capacity) return T;
  const int64_t dropped_at_once = cache.capacity - cache.window + 1;
  return T - dropped_at_once * ((T - cache.capacity + dropped_at_once - 1) / dropped_at_once);
}

constexpr WindowPlace PlaceInWindow(const WindowCache& cache, int64_t T, int64_t before) {
  const int64_t held_before = ResidentRows(cache, before);
  const int64_t held = ResidentRows(cache, T);
  return {held_before, held, T - held, held_before + (T - before) - held};
}

// Where the queries of a sequence stand: T tokens after the call, `before` before it, `rows` query rows with a token.
constexpr SequencePlace PlaceQueries(const WindowCache& cache, int64_t T, int64_t before, int64_t rows,
                                     int64_t first_column) {
  if (cache.capacity == 0) return {T, before, rows, first_column, before};
  const WindowPlace window = PlaceInWindow(cache, T, before);
  const int64_t kept = cache.staged ? window.skip : 0;
  return {window.held + kept, before - window.first + kept, rows, window.first - kept, before};
}

// Where the new rows of a sequence go: T tokens after the call, or T kept ones where no window-sized cache drops rows.
constexpr AppendPlace PlaceAppend(const WindowCache& cache, int64_t T, int64_t before, int64_t skip) {
  if (cache.capacity == 0) return {before, T, skip, before};
  const WindowPlace window = PlaceInWindow(cache, T, before);
  if (cache.staged) return {window.held_before, window.held + window.skip, 0, before};
  return {window.held_before, window.held, window.skip, before};
}

// The same from numbers in host memory.
inline int64_t NumberOr(const Lengths& lengths, int64_t b, int64_t otherwise) {
  return lengths ? lengths.At(b) : otherwise;
}

inline SequencePlace PlaceOf(const AttentionCall& call, int64_t b) {
  const Positions& positions = call.positions;
  // A key mask numbers keys and queries itself.
  const int64_t length = call.key_mask ? call.key.tokens : NumberOr(positions.length, b, call.key.tokens);
  const int64_t rows = call.key_mask ? call.query.tokens : NumberOr(positions.query_length, b, call.query.tokens);
  const int64_t before =
      positions.query_position.kind == Lengths::Kind::kAtEnd ? length - rows : NumberOr(positions.query_position, b, 0);
  return PlaceQueries(positions.cache, length, before, rows, NumberOr(positions.first_column, b, 0));
}

inline AppendPlace PlaceOf(const AppendCall& call, int64_t b) {
  const int64_t rows = NumberOr(call.fresh_length, b, call.fresh.tokens);
  const int64_t skip = NumberOr(call.skip, b, 0);
  const bool at_end = call.past_length.kind == Lengths::Kind::kAtEnd;
  const int64_t before = at_end ? NumberOr(call.length, b, 0) - rows : NumberOr(call.past_length, b, 0);
  return PlaceAppend(call.cache, NumberOr(call.length, b, before + call.fresh.tokens - skip), before, skip);
}

}  // namespace kvshare
