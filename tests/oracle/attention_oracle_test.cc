// The oracle against sums done by hand: two keys whose scores and values are simple numbers.
#include <gtest/gtest.h>

#include <cmath>

#include "kvshare/oracle.h"

namespace kvshare {
namespace {

// One head of size 1: scores are query * key, values are what each key is worth.
struct Hand {
  double query[2] = {1, 1};
  double key[3] = {0, std::log(2.0), std::log(4.0)};  // e^score = 1, 2, 4
  double value[3] = {10, 20, 40};
  double output[2] = {-1, -1};
  AttentionCall call;

  explicit Hand(int64_t S = 1) {
    call.query = HeadsView::Bnsh(query, DType::kF64, 1, 1, S, 1);
    call.key = HeadsView::Bnsh(key, DType::kF64, 1, 1, 3, 1);
    call.value = HeadsView::Bnsh(value, DType::kF64, 1, 1, 3, 1);
    call.output = MutableHeadsView::Bnsh(output, DType::kF64, 1, 1, S, 1);
  }
};

TEST(Oracle, WeighsValuesBySoftmax) {
  Hand h;
  AttendOracle(h.call);
  EXPECT_NEAR(h.output[0], (10 + 2 * 20 + 4 * 40) / 7.0, 1e-12);
}

TEST(Oracle, CausalRowsSeeKeysUpToTheirPosition) {
  Hand h(2);
  const int64_t position = 1;
  h.call.spec.window_right = 0;
  h.call.positions.query_position = &position;
  AttendOracle(h.call);
  EXPECT_NEAR(h.output[0], (10 + 2 * 20) / 3.0, 1e-12);
  EXPECT_NEAR(h.output[1], (10 + 2 * 20 + 4 * 40) / 7.0, 1e-12);
}

TEST(Oracle, AWindowOfTwoKeepsTheRowsOwnKeyAndOneBefore) {
  Hand h;
  const int64_t position = 2;
  h.call.spec.window_left = 1;
  h.call.spec.window_right = 0;
  h.call.positions.query_position = &position;
  AttendOracle(h.call);
  EXPECT_NEAR(h.output[0], (2 * 20 + 4 * 40) / 6.0, 1e-12);
}

TEST(Oracle, LengthsHidePadding) {
  Hand h;
  const int64_t length = 2;
  h.call.positions.length = &length;
  AttendOracle(h.call);
  EXPECT_NEAR(h.output[0], (10 + 2 * 20) / 3.0, 1e-12);
}

TEST(Oracle, SmoothSoftmaxAddsAKeyOfScoreZeroAndASinkOneOfItsScore) {
  Hand h;
  h.call.spec.smooth_softmax = true;
  AttendOracle(h.call);
  EXPECT_NEAR(h.output[0], (10 + 2 * 20 + 4 * 40) / 8.0, 1e-12);
  const auto sink = static_cast<float>(std::log(9.0));
  h.call.spec.head_sink = &sink;
  AttendOracle(h.call);
  EXPECT_NEAR(h.output[0], (10 + 2 * 20 + 4 * 40) / 16.0, 1e-5);
}

TEST(Oracle, SoftcapComesBeforeTheBias) {
  Hand h;
  h.call.spec.softcap = 0.5;
  const double bias[] = {0, -INFINITY, 1};
  h.call.mask = {bias, DType::kF64, 3, 3, 3, 1, 3};
  AttendOracle(h.call);
  const double w2 = std::exp(0.5 * std::tanh(std::log(4.0) / 0.5) + 1);
  EXPECT_NEAR(h.output[0], (10 + w2 * 40) / (1 + w2), 1e-9);
}

TEST(Oracle, ABoolMaskShorterThanTheKeysHidesTheRest) {
  Hand h;
  const uint8_t keep[] = {1, 0};
  h.call.mask = {keep, DType::kBool, 2, 2, 2, 1, 2};
  AttendOracle(h.call);
  EXPECT_NEAR(h.output[0], 10, 1e-12);
}

TEST(Oracle, NormDividesByTheRootOfMeanSquareAndEpsilon) {
  Hand h;
  const double weight = 1;
  h.call.norm = {&weight, DType::kF64, 3};  // the query is 1 / sqrt(1 + 3): e^score = 1, sqrt(2), 2
  AttendOracle(h.call);
  EXPECT_NEAR(h.output[0], (10 + std::sqrt(2.0) * 20 + 2 * 40) / (3 + std::sqrt(2.0)), 1e-12);
}

TEST(Oracle, AKeyMaskNumbersPositionsByItsOnes) {
  Hand h;
  const int64_t mask[] = {1, 0, 1};  // positions 1, 1, 2: with a window of two, keys 0 and 2 are seen
  h.call.key_mask = {mask, DType::kI64, 3};
  h.call.spec.window_left = 1;
  h.call.spec.window_right = 0;
  AttendOracle(h.call);
  EXPECT_NEAR(h.output[0], (10 + 4 * 40) / 5.0, 1e-12);
}

TEST(Oracle, RotaryTurnsPairsByTheAngleOfTheirPosition) {
  double query[] = {1, 0}, key[] = {0, 1, 1, 0}, value[] = {1, 0, 0, 1}, output[2];
  const double cos[] = {1, 0}, sin[] = {0, 1};  // position 1 turns (1, 0) into (0, 1)
  AttentionCall call;
  call.query = HeadsView::Bnsh(query, DType::kF64, 1, 1, 1, 2);
  call.key = HeadsView::Bnsh(key, DType::kF64, 1, 1, 2, 2);
  call.value = HeadsView::Bnsh(value, DType::kF64, 1, 1, 2, 2);
  call.output = MutableHeadsView::Bnsh(output, DType::kF64, 1, 1, 1, 2);
  call.rotary = {cos, sin, DType::kF64, 2, 1, false};
  const int64_t position = 1;
  call.rotary_positions = &position;
  call.spec.scale = 50;
  AttendOracle(call);
  EXPECT_NEAR(output[0], 1, 1e-12);
  EXPECT_NEAR(output[1], 0, 1e-12);
}

}  // namespace
}  // namespace kvshare
