// Random calls of attention and of appends, by the backend as adapters call it, against the oracle. Each call is
// captured in a graph while its numbers on the device are wild, and replayed with its own.
#include <algorithm>
#include <initializer_list>

#include "tests/cuda/any_append.h"
#include "tests/cuda/any_attention.h"

namespace kvshare::cuda {
namespace {

using testing::AnyAppend;
using testing::AnyAttention;
using testing::Array;
using testing::Draw;
using testing::ExpectAgree;
using testing::ExpectClose;
using testing::Mirror;
using testing::Parts;
using testing::RunWithNumbersThatComeLater;
using testing::TheBackend;
using testing::ToleranceOf;

class EmulatedCalls : public testing::Emulated {
 protected:
  void BecomeAny(Draw& draw) {
    emulation::SetDevice({draw.Of({1, 8, 132}), draw.Of({size_t{99}, size_t{163}, size_t{227}}) << 10});
    ASSERT_TRUE(TheBackend().prepare().ok());
  }
  static uint64_t Seed(uint64_t order, int round) { return 1000003 * order + static_cast<uint64_t>(round); }
};
INSTANTIATE_TEST_SUITE_P(Seeds, EmulatedCalls, ::testing::Values(0, 1, 7));

TEST_P(EmulatedCalls, AnyAttentionMatchesTheOracle) {
  constexpr double kSums = 5e-5;  // of f32, where scores are large
  int legal = 0;
  const int rounds = kvshare::testing::Rounds(40);
  for (int round = 0; round < rounds; ++round) {
    AnyAttention any(Seed(GetParam(), round));
    if (!CheckAttention(any.call, "test").ok()) continue;
    ++legal;
    any.PoisonUnseen();
    BecomeAny(any.draw);
    Mirror mirror;
    const AttentionCall device = any.OnDevice(mirror);
    SCOPED_TRACE(::testing::Message() << "round " << round << ": " << ::testing::PrintToString(any));
    RunWithNumbersThatComeLater(mirror, any.draw, [&](Exec& exec) { return TheBackend().attend(device, exec); });
    AttendOracle(any.call);
    const Parts want(any.output);
    const Array want_scores = any.scores;
    mirror.Download(any.output.memory);
    mirror.Download(any.scores);
    // Prepared queries are rounded, and weights of 16 bits; the output is, once more.
    const double tolerance = 2 * std::max({ToleranceOf(any.call.query.type), ToleranceOf(any.call.output.type), kSums});
    constexpr double kLeast = 0.1;  // of a narrow row all sums may cancel
    ExpectAgree(want, Parts(any.output), any.Dv, tolerance, kLeast);
    ExpectClose(want_scores, any.scores, any.call.scores.keys, 2 * std::max(ToleranceOf(any.call.scores.type), kSums),
                any.call.scores.stage == ScoreStage::kWeights ? 0 : 1, "score");
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(2 * legal, rounds);
}

TEST_P(EmulatedCalls, AnyAppendMatchesTheOracle) {
  int legal = 0;
  const int rounds = kvshare::testing::Rounds(40);
  for (int round = 0; round < rounds; ++round) {
    AnyAppend any(Seed(GetParam(), round));
    if (!CheckAppend(any.call, "test").ok()) continue;
    ++legal;
    BecomeAny(any.draw);
    Mirror mirror;
    const AppendCall device = any.OnDevice(mirror);
    SCOPED_TRACE(::testing::Message() << "round " << round << ": " << ::testing::PrintToString(any));
    RunWithNumbersThatComeLater(mirror, any.draw, [&](Exec& exec) { return TheBackend().append(device, exec); });
    AppendOracle(any.call);
    const Parts want(any.present);
    mirror.Download(any.present.memory);
    const bool computed = any.call.norm || any.call.rotary;  // in f32: a code may be the next one
    const double off = IsQuantized(any.call.present.type) ? 0.13 : ToleranceOf(any.call.present.type);
    ExpectAgree(want, Parts(any.present), RowElements(any.call.present.type, any.D), computed ? off : 0,
                computed ? 8 : 0);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(2 * legal, rounds);
}

// What the random calls have found, said once more.
struct Append : AnyAppend {
  Append(std::initializer_list<int64_t> dropped, Lengths::Kind kind) : AnyAppend(4) {
    call = {};
    B = 2, H = 1, S = 3, D = 8, rows = 10;
    fresh = present = past = {};
    fresh.Make(draw, DType::kF16, B, H, S, D);
    present.Make(draw, DType::kF16, B, H, rows, D);
    call.fresh = fresh.view;
    call.present = present.Mutable();
    call.past = present.view;
    skip.wide.assign(dropped);
    call.skip = skip.wide.data();
    call.skip.kind = kind;
    if (kind == Lengths::Kind::kSame) call.skip = Lengths::Same(skip.wide[0]);
  }
  void Expect() {
    ASSERT_TRUE(CheckAppend(call, "test").ok()) << CheckAppend(call, "test").message();
    ASSERT_TRUE(TheBackend().prepare().ok());
    Mirror mirror;
    const AppendCall device = OnDevice(mirror);
    RunWithNumbersThatComeLater(mirror, draw, [&](Exec& exec) { return TheBackend().append(device, exec); });
    AppendOracle(call);
    const Parts want(present);
    mirror.Download(present.memory);
    ExpectAgree(want, Parts(present), D, 0, 0);
  }
};

TEST(Rules, DroppedRowsThatCountOneLessLeaveAllNewRows) {
  Append append({-1, 0}, Lengths::Kind::kLessOne);
  append.past_length.wide = {6, 3};
  append.call.past_length = append.past_length.wide.data();
  append.Expect();
}

TEST(Rules, TheSameNumberOfRowsIsDroppedOfEachSequence) {
  Append append({2, 2}, Lengths::Kind::kSame);
  append.past_length.wide = {6, 3};
  append.call.past_length = append.past_length.wide.data();
  append.Expect();
}

TEST(Rules, RowsAreDroppedBesideNewRowsAtTheEnd) {
  Append append({1, 2}, Lengths::Kind::kGiven);
  append.length.wide = {7, 4};
  append.fresh_length.wide = {2, 1};
  append.call.length = append.length.wide.data();
  append.call.fresh_length = append.fresh_length.wide.data();
  append.call.past_length = Lengths::AtEnd();
  append.Expect();
}

TEST(Rules, QueriesAtTheEndMayStandBeforeAllKeysAndKeepTheirFirstColumn) {
  ASSERT_TRUE(TheBackend().prepare().ok());
  testing::Problem p;
  p.B = 2;
  p.S = 3;
  p.T = 40;
  p.length = {2, 30};
  p.query_length = {3, 2};
  p.Fill();
  p.AddBias(DType::kF32, true);
  std::vector<int64_t> first_column = {4, 7};
  Array output;
  AttentionCall call = p.Call(output);
  call.key_rows_read = nullptr;
  call.positions = {p.length.data(), Lengths::AtEnd(), p.query_length.data(), first_column.data()};
  ASSERT_TRUE(CheckAttention(call, "test").ok()) << CheckAttention(call, "test").message();
  AttentionCall device = call;
  Mirror mirror;
  for (const Array* array : {&p.query, &p.key, &p.value, &p.mask, &output}) mirror.Add(*array);
  for (const auto* numbers : {&p.length, &p.query_length, &first_column}) mirror.AddNumbers(*numbers);
  for (HeadsView* view : {&device.query, &device.key, &device.value}) Move(mirror, *view);
  Move(mirror, device.output);
  device.mask.data = mirror.Of(device.mask.data);
  kvshare::Positions& rules = device.positions;
  for (Lengths* rule : {&rules.length, &rules.query_length, &rules.first_column}) Move(mirror, *rule);
  Draw draw(1);
  RunWithNumbersThatComeLater(mirror, draw, [&](Exec& exec) { return TheBackend().attend(device, exec); });
  AttendOracle(call);
  const Array want = output;
  mirror.Download(output);
  ExpectClose(want, output, p.Dv, ToleranceOf(p.type));
}

}  // namespace
}  // namespace kvshare::cuda
