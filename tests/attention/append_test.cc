// Append against the oracle.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kvshare/attend.h"
#include "kvshare/oracle.h"
#include "tests/support/every_target.h"
#include "tests/support/problem.h"

namespace kvshare {
namespace {

using testing::Array;
using testing::EveryTarget;

KVSHARE_ON_EVERY_TARGET();

void Appended(const AppendCall& call) {
  WorkspacePool pool;
  const Status status = Append(call, ParallelFor::Serial(), pool);
  ASSERT_TRUE(status.ok()) << status.message();
}

TEST(Append, RotatesCopiesAndZeroesLikeTheOracle) {
  std::mt19937 random(3);
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16})
    for (const bool in_place : {false, true})
      for (const int64_t half : {0, 9, 16}) {
        const int64_t B = 2, H = 2, S = 3, D = 40, past_rows = 300, capacity = 310;
        Array past(type, B * H * capacity * D), fresh(type, B * S * H * D), cos(type, 400 * half),
            sin(type, 400 * half);
        past.Fill(random, 1);
        fresh.Fill(random, 1);
        cos.Fill(random, 1);
        sin.Fill(random, 1);
        const int64_t past_length[] = {past_rows, 17};
        const int64_t length[] = {past_rows + S, 17 + 2};
        Array want(type, B * H * capacity * D), got(type, B * H * capacity * D);
        if (in_place) {
          want.bytes = got.bytes = past.bytes;
        } else {  // what is not written shows
          for (Array* present : {&want, &got})
            for (int64_t i = 0; i < present->size(); ++i) present->Set(i, std::numeric_limits<double>::quiet_NaN());
        }
        const auto call = [&](Array& present) {
          AppendCall c;
          c.past = HeadsView::Bnsh(in_place ? present.data() : past.data(), type, B, H, capacity, D);
          c.fresh = HeadsView::Bsnh(fresh.data(), type, B, S, H, D);
          c.present = MutableHeadsView::Bnsh(present.data(), type, B, H, capacity, D);
          c.past_length = past_length;
          c.length = length;
          if (half > 0) c.rotary = {cos.data(), sin.data(), type, 400, half, half == 9};
          EXPECT_TRUE(CheckAppend(c, "test").ok()) << CheckAppend(c, "test").message();
          return c;
        };
        AppendOracle(call(want));
        Appended(call(got));
        for (int64_t i = 0; i < want.size(); ++i)
          ASSERT_NEAR(want.Get(i), got.Get(i),
                      (type == DType::kF32   ? 1e-6
                       : type == DType::kF16 ? 4e-3
                                             : 4e-2))
              << NameOf(type) << " in place " << in_place << " element " << i;
      }
}

TEST_P(EveryTarget, AppendNormalizesQuantizesAndDropsOldRowsLikeTheOracle) {
  std::mt19937 random(5);
  for (const DType type : {DType::kF32, DType::kF16, DType::kI8, DType::kI4, DType::kF8E4M3})
    for (const bool in_place : {false, true})
      for (const bool per_channel : {false, true})
        for (const int64_t D : {16, 33}) {
          const int64_t B = 3, H = 2, S = 5, capacity = 12, row = RowElements(type, D);
          Array past(type, B * H * capacity * row), fresh(DType::kF32, B * S * H * D), norm(DType::kF32, D);
          Array cos(DType::kF32, 100 * 8), sin(DType::kF32, 100 * 8);
          for (Array* a : {&past, &fresh, &norm, &cos, &sin}) a->Fill(random, 1);
          std::vector<float> scales(H * D);
          for (float& s : scales) s = 0.01F + 0.02F * static_cast<float>(random() % 100) / 100;
          // The second is left as it is, the third drops all of its past and one new row.
          const int64_t past_length[] = {10, 3, 4};
          const int64_t skip[] = {6, 0, 5};
          const int64_t length[] = {9, 8, 4};
          std::vector<int64_t> positions(B * S);
          for (int64_t i = 0; i < B * S; ++i) positions[i] = 40 + i;
          Array want(type, B * H * capacity * row), got(type, B * H * capacity * row);
          if (in_place) want.bytes = got.bytes = past.bytes;
          const auto call = [&](Array& present) {
            AppendCall c;
            c.past = HeadsView::Bnsh(in_place ? present.data() : past.data(), type, B, H, capacity, D);
            c.fresh = HeadsView::Bsnh(fresh.data(), DType::kF32, B, S, H, D);
            c.present = MutableHeadsView::Bnsh(present.data(), type, B, H, capacity, D);
            if (IsQuantized(type)) c.past.quant = c.present.quant = {scales.data(), per_channel};
            c.past_length = past_length;
            c.length = length;
            c.skip = skip;
            c.norm = {norm.data(), DType::kF32, 1e-6F};
            c.rotary = {cos.data(), sin.data(), DType::kF32, 100, 8, false};
            c.rotary_positions = positions.data();
            EXPECT_TRUE(CheckAppend(c, "test").ok()) << CheckAppend(c, "test").message();
            return c;
          };
          AppendOracle(call(want));
          Appended(call(got));
          // A number on the border of two codes may go either way.
          const double near = type == DType::kF32 ? 1e-5 : type == DType::kF16 ? 4e-3 : type == DType::kF8E4M3 ? 32 : 1;
          int differing = 0;
          for (int64_t i = 0; i < want.size(); ++i) {
            if (i % row >= D) continue;  // the unused half of a last byte
            ASSERT_NEAR(want.Get(i), got.Get(i), near)
                << NameOf(type) << " in place " << in_place << " D " << D << " element " << i;
            differing += want.Get(i) != got.Get(i) ? 1 : 0;
          }
          if (IsQuantized(type)) {
            EXPECT_LE(differing, 2) << NameOf(type);
          }
        }
}

TEST_P(EveryTarget, CodesBetweenTwoGoToTheEvenOne) {
  const int64_t D = 16;
  const float scale[] = {1};
  Array fresh(DType::kF32, D);
  for (int64_t d = 0; d < D; ++d) fresh.Set(d, static_cast<double>(d) - 7.5);
  for (const DType type : {DType::kI8, DType::kI4}) {
    Array got(type, D);
    AppendCall call;
    call.fresh = HeadsView::Bsnh(fresh.data(), DType::kF32, 1, 1, 1, D);
    call.present = MutableHeadsView::Bnsh(got.data(), type, 1, 1, 1, D);
    call.present.quant = {scale, false};
    Appended(call);
    for (int64_t d = 0; d < D; ++d)
      EXPECT_EQ(got.Get(d), std::min(std::nearbyint(fresh.Get(d)), type == DType::kI4 ? 7.0 : 127.0)) << d;
  }
}

TEST_P(EveryTarget, AppendRotatesManyPairs) {
  std::mt19937 random(5);
  const int64_t D = 256, half = 128;
  Array fresh(DType::kF32, D), cos(DType::kF32, half), sin(DType::kF32, half);
  for (Array* a : {&fresh, &cos, &sin}) a->Fill(random, 1);
  for (const bool interleaved : {false, true}) {
    Array want(DType::kF32, D), got(DType::kF32, D);
    const auto call = [&](Array& present) {
      AppendCall c;
      c.fresh = HeadsView::Bsnh(fresh.data(), DType::kF32, 1, 1, 1, D);
      c.present = MutableHeadsView::Bnsh(present.data(), DType::kF32, 1, 1, 1, D);
      c.rotary = {cos.data(), sin.data(), DType::kF32, 1, half, interleaved};
      return c;
    };
    AppendOracle(call(want));
    Appended(call(got));
    testing::ExpectClose(want, got, D, 1e-6);
  }
}

TEST_P(EveryTarget, AppendServesHeadsOfAnySize) {
  std::mt19937 random(9);
  const int64_t S = 2, D = 5000, half = 2500;
  Array fresh(DType::kF32, S * D), norm(DType::kF32, D), cos(DType::kF32, S * half), sin(DType::kF32, S * half);
  for (Array* a : {&fresh, &norm, &cos, &sin}) a->Fill(random, 1);
  Array want(DType::kF16, S * D), got(DType::kF16, S * D);
  const auto call = [&](Array& present) {
    AppendCall c;
    c.fresh = HeadsView::Bnsh(fresh.data(), DType::kF32, 1, 1, S, D);
    c.present = MutableHeadsView::Bnsh(present.data(), DType::kF16, 1, 1, S, D);
    c.norm = {norm.data(), DType::kF32, 1e-6F};
    c.rotary = {cos.data(), sin.data(), DType::kF32, S, half, false};
    EXPECT_TRUE(CheckAppend(c, "test").ok()) << CheckAppend(c, "test").message();
    return c;
  };
  AppendOracle(call(want));
  Appended(call(got));
  testing::ExpectClose(want, got, D, 1e-3);
}

TEST(Append, LeavesF64ToTheOracle) {
  double fresh[4] = {1, 2, 3, 4}, present[4] = {};
  AppendCall call;
  call.fresh = HeadsView::Bnsh(fresh, DType::kF64, 1, 1, 2, 2);
  call.present = MutableHeadsView::Bnsh(present, DType::kF64, 1, 1, 2, 2);
  ASSERT_TRUE(CheckAppend(call, "test").ok());
  WorkspacePool pool;
  const Status status = Append(call, ParallelFor::Serial(), pool);
  EXPECT_EQ(status.code(), StatusCode::kRefused);
  EXPECT_EQ(status.message(), "no SIMD kernel for f64; AttendOracle and AppendOracle compute it");
}

}  // namespace
}  // namespace kvshare
