// Lengths and positions: judged where the host can read them, and left to the device where it cannot.
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>

#include "kvshare/call.h"

namespace kvshare {
namespace {

// Two sequences of at most 8 keys, one query row each.
struct Good {
  float data[2 * 4 * 8 * 16] = {};
  float fresh[2 * 4 * 8 * 16] = {};
  int32_t seqlens_k[2] = {7, 4};
  int64_t number[2] = {2, 3};
  AttentionCall call;
  AppendCall append;

  Good() {
    call.query = HeadsView::Bsnh(data, DType::kF32, 2, 1, 4, 16);
    call.key = HeadsView::Bnsh(data, DType::kF32, 2, 2, 8, 16);
    call.value = call.key;
    call.output = MutableHeadsView::Bsnh(data, DType::kF32, 2, 1, 4, 16);
    call.positions.length = LessOne();
    call.positions.query_position = Lengths::AtEnd();
    append.present = MutableHeadsView::Bnsh(data, DType::kF32, 2, 2, 8, 16);
    append.past = Const(append.present);
    append.fresh = HeadsView::Bsnh(fresh, DType::kF32, 2, 1, 2, 16);
    append.length = LessOne();
    append.past_length = Lengths::AtEnd();
  }
  Lengths LessOne() {
    Lengths lengths;
    lengths.kind = Lengths::Kind::kLessOne;
    lengths.data = seqlens_k;
    lengths.type = DType::kI32;
    return lengths;
  }
};

std::string Message(const std::function<void(Good&)>& spoil) {
  Good good;
  spoil(good);
  const Status attend = CheckAttention(good.call, "Op 'node'");
  return attend.ok() ? CheckAppend(good.append, "Op 'node'").message() : attend.message();
}

TEST(CheckNumbers, TakesRules) {
  EXPECT_EQ(Message([](Good&) {}), "");
}

TEST(CheckNumbers, JudgesWhatARuleComesTo) {
  EXPECT_EQ(Message([](Good& g) { g.seqlens_k[1] = 8; }), "Op 'node': length[1] is 9; needs 0 to 8, the rows of 'key'");
  EXPECT_EQ(Message([](Good& g) { g.call.positions.query_length = Lengths::Same(-1); }),
            "Op 'node': query length of batch 0 is -1; needs 0 to S = 1");
  EXPECT_EQ(Message([](Good& g) { g.append.fresh_length = Lengths::Same(-2); }),
            "Op 'node': past length of batch 0 is 10; needs 0 to 8, the rows of 'past'");
  EXPECT_EQ(Message([](Good& g) { g.append.fresh_length = Lengths::Same(std::numeric_limits<int64_t>::max()); }),
            "Op 'node': number of new rows of batch 0 is 9223372036854775807; needs a magnitude of at most 2147483583");
  EXPECT_EQ(Message([](Good& g) {
              g.number[0] = 0;
              g.number[1] = std::numeric_limits<int64_t>::min();
              g.append.skip = g.number;
            }),
            "Op 'node': number of rows dropped of batch 1 is -9223372036854775808; needs a magnitude of at most "
            "2147483583");
}

TEST(CheckNumbers, JudgesAWindowSizedCache) {
  const auto cache = [](int64_t capacity, int64_t window) {
    return [=](Good& g) { g.call.positions.cache = {.capacity = capacity, .window = window, .staged = false}; };
  };
  EXPECT_EQ(Message(cache(8, 5)), "");
  EXPECT_EQ(Message(cache(8, 0)), "Op 'node': window of the cache is 0; needs 1 or more");
  EXPECT_EQ(Message(cache(9, 5)),
            "Op 'node': window-sized cache has 9 rows; needs 5 to 8, its window and the rows that there are");
  EXPECT_EQ(Message(cache(4, 5)),
            "Op 'node': window-sized cache has 4 rows; needs 5 to 8, its window and the rows that there are");
}

TEST(CheckNumbers, ReadsNothingOnADevice) {
  const auto on_device = [](Lengths lengths) {
    lengths.data = reinterpret_cast<const void*>(8);
    lengths.memory = Memory::kDevice;
    return lengths;
  };
  EXPECT_EQ(Message([&](Good& g) {
              g.call.positions.length = on_device(g.call.positions.length);
              g.append.length = on_device(g.append.length);
            }),
            "");
  // What extents say is judged all the same.
  EXPECT_EQ(Message([&](Good& g) {
              g.call.positions.length = on_device(g.call.positions.length);
              g.call.value.tokens = 7;
            }),
            "Op 'node': input 'value' has 7 tokens; needs 8 like 'key'");
}

// Padding has no position: it is not looked up in the tables.
TEST(CheckNumbers, LetsPaddingStandAnywhere) {
  const auto rotated = [](int64_t tokens) {
    return [=](Good& g) {
      g.call.query = HeadsView::Bsnh(g.data, DType::kF32, 2, 2, 4, 16);
      g.call.output = MutableHeadsView::Bsnh(g.data, DType::kF32, 2, 2, 4, 16);
      g.call.positions = {g.number, g.number, Lengths::Same(tokens)};
      g.call.rotary = {g.data, g.data, DType::kF32, /*max_positions=*/4, 8, false};
    };
  };
  EXPECT_EQ(Message(rotated(1)), "");
  EXPECT_EQ(Message(rotated(2)),
            "Op 'node': position of token 1 of batch 1 is 4; needs 0 to 3, the rows of 'cos_cache'");
}

}  // namespace
}  // namespace kvshare
