// Places of sequences against a cache that is simulated row by row.
#include "core/place_sequences.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace kvshare {
namespace {

// The positions that the cache holds, oldest first.
struct Simulated {
  WindowCache cache;
  std::vector<int64_t> held;

  // ONNX Runtime's rule: where a token does not fit, capacity - window + 1 rows make room at once.
  void Take(int64_t position) {
    if (std::ssize(held) == cache.capacity)
      held.erase(held.begin(), held.begin() + static_cast<std::ptrdiff_t>(cache.capacity - cache.window + 1));
    held.push_back(position);
  }
};

TEST(PlaceSequences, AWindowSizedCacheHoldsWhatASimulatedOneHolds) {
  for (const auto& [capacity, window] : {std::pair<int64_t, int64_t>{8, 5}, {8, 8}, {5, 1}, {16, 3}})
    for (int64_t S = 1; S <= 2 * capacity; ++S) {
      const WindowCache cache = {.capacity = capacity, .window = window, .staged = false};
      Simulated simulated{cache, {}};
      for (int64_t before = 0; before < 4 * capacity; before += S) {
        const std::vector<int64_t> held_before = simulated.held;
        for (int64_t s = 0; s < S; ++s) simulated.Take(before + s);
        const int64_t T = before + S;
        const SequencePlace queries = PlaceQueries(cache, T, before, S, 0);
        ASSERT_EQ(queries.length, std::ssize(simulated.held)) << capacity << " " << window << " " << S << " " << T;
        ASSERT_EQ(queries.first_column, simulated.held.front());
        ASSERT_EQ(queries.query_position, before - simulated.held.front());
        ASSERT_EQ(queries.rotary, before);
        const AppendPlace append = PlaceAppend(cache, T, before, 0);
        ASSERT_EQ(append.past_length, std::ssize(held_before));
        ASSERT_EQ(append.length, std::ssize(simulated.held));
        ASSERT_EQ(append.skip, std::ssize(held_before) + S - std::ssize(simulated.held));

        WindowCache staged = cache;
        staged.staged = true;  // past and new rows side by side
        const SequencePlace all = PlaceQueries(staged, T, before, S, 0);
        ASSERT_EQ(all.length, std::ssize(held_before) + S);
        ASSERT_EQ(all.first_column, held_before.empty() ? 0 : held_before.front());
        ASSERT_EQ(all.query_position, std::ssize(held_before));
        const AppendPlace side_by_side = PlaceAppend(staged, T, before, 0);
        ASSERT_EQ(side_by_side.length, std::ssize(held_before) + S);
        ASSERT_EQ(side_by_side.skip, 0);
      }
    }
}

TEST(PlaceSequences, DefaultsAreAllKeysAndTheFirstPosition) {
  AttentionCall call;
  call.key.tokens = 9;
  call.query.tokens = 2;
  const SequencePlace place = PlaceOf(call, 0);
  EXPECT_EQ(place.length, 9);
  EXPECT_EQ(place.query_position, 0);
  EXPECT_EQ(place.query_length, 2);
  call.positions.query_position = Lengths::AtEnd();
  EXPECT_EQ(PlaceOf(call, 0).query_position, 7);
}

// A key mask says which keys and rows there are, whatever stands beside it.
TEST(PlaceSequences, AKeyMaskHidesTheLengths) {
  const uint8_t kept[9] = {};
  const int64_t odd = -3;
  AttentionCall call;
  call.key.tokens = 9;
  call.query.tokens = 2;
  call.key_mask = {kept, DType::kBool, 9};
  call.positions = {&odd, &odd, &odd};
  const SequencePlace place = PlaceOf(call, 0);
  EXPECT_EQ(place.query_length, 2);
  EXPECT_EQ(place.rotary, -3);
}

TEST(RotaryPositions, FollowOneAnotherUnlessGiven) {
  const int64_t given[] = {5, 3, 8, 1};
  RotaryPositions positions;
  EXPECT_EQ(positions.At(1, 1, 2, 40), 41);
  positions = given;
  EXPECT_EQ(positions.At(1, 1, 2, 40), 1);
  positions.same_start = true;
  EXPECT_EQ(positions.At(1, 1, 2, 40), 6);
}

}  // namespace
}  // namespace kvshare
