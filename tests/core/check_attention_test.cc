// The only judge of shapes: each refusal names the input, its value and what was wanted.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "kvshare/call.h"

namespace kvshare {
namespace {

struct Good {
  float data[2 * 4 * 8 * 16] = {};
  float fresh[2 * 4 * 8 * 16] = {};
  int64_t length[2] = {8, 5};
  int64_t position[2] = {7, 4};
  AttentionCall call;

  Good() {
    call.query = HeadsView::Bsnh(data, DType::kF32, 2, 1, 4, 16);
    call.key = HeadsView::Bnsh(data, DType::kF32, 2, 2, 8, 16);
    call.value = call.key;
    call.output = MutableHeadsView::Bsnh(data, DType::kF32, 2, 1, 4, 16);
    call.positions = {length, position};
  }
};

void ExpectRefusal(const std::function<void(Good&)>& spoil, StatusCode code, const std::string& message) {
  Good good;
  spoil(good);
  const Status status = CheckAttention(good.call, "Op 'node'");
  EXPECT_EQ(status.code(), code);
  EXPECT_EQ(status.message(), message);
}

TEST(CheckAttention, AcceptsAGoodCall) {
  Good good;
  EXPECT_TRUE(CheckAttention(good.call, "Op 'node'").ok());
}

TEST(CheckAttention, NamesTheInputItsValueAndTheWant) {
  const auto bad = StatusCode::kInvalidInput;
  ExpectRefusal([](Good& g) { g.call.key.head_size = 32; }, bad,
                "Op 'node': input 'key' has D = 32 (shape [B 2, heads 2, tokens 8, D 32]); needs D = 16 like 'query'");
  ExpectRefusal([](Good& g) { g.call.key.batch = 3; }, bad,
                "Op 'node': input 'key' has B = 3 (shape [B 3, heads 2, tokens 8, D 16]); needs B = 2 like 'query'");
  ExpectRefusal([](Good& g) { g.call.value.tokens = 7; }, bad,
                "Op 'node': input 'value' has 7 tokens; needs 8 like 'key'");
  ExpectRefusal([](Good& g) { g.call.key.heads = g.call.value.heads = 3; }, bad,
                "Op 'node': input 'query' has 4 heads; needs a multiple of the 3 heads of 'key'");
  ExpectRefusal([](Good& g) { g.call.query.data = nullptr; }, bad,
                "Op 'node': input 'query' is absent; needs [B 2, heads 4, tokens 1, D 16]");
  ExpectRefusal([](Good& g) { g.length[1] = 9; }, bad, "Op 'node': length[1] is 9; needs 0 to 8, the rows of 'key'");
  ExpectRefusal([](Good& g) { g.length[0] = -1; }, bad, "Op 'node': length[0] is -1; needs 0 to 8, the rows of 'key'");
  ExpectRefusal([](Good& g) { g.call.spec.softcap = -1; }, bad,
                "Op 'node': attribute 'softcap' is -1; needs a finite number >= 0");
  ExpectRefusal([](Good& g) { g.call.rotary = {g.data, g.data, DType::kF32, 4, 8, false}; }, bad,
                "Op 'node': position of token 0 of batch 0 is 7; needs 0 to 3, the rows of 'cos_cache'");
  ExpectRefusal([](Good& g) { g.call.rotary = {g.data, g.data, DType::kF32, 7, 8, false}; }, bad,
                "Op 'node': position of token 0 of batch 0 is 7; needs 0 to 6, the rows of 'cos_cache'");
  ExpectRefusal([](Good& g) { g.call.rotary = {g.data, g.data, DType::kF32, 64, 9, false}; }, bad,
                "Op 'node': input 'cos_cache' has 9 columns; needs 1 to 8, half the head size 16");
  ExpectRefusal([](Good& g) { g.call.scores = {g.data, DType::kF32, ScoreStage::kRaw, 7}; }, bad,
                "Op 'node': scores of every key have 7 columns; needs 8, the rows of 'key'");
  ExpectRefusal([](Good& g) { g.call.scores = {g.data, DType::kF32, ScoreStage::kWeights, 7}; }, bad,
                "Op 'node': scores have 7 columns; needs 8 for the keys of batch 0");
  ExpectRefusal(
      [](Good& g) {
        g.call.key_mask = {g.data, DType::kBool, 8};
        g.call.scores = {g.data, DType::kF32, ScoreStage::kMasked, 8, 0.0F};
      },
      bad, "Op 'node': scores show keys outside as 0 beside 'key_mask'; needs -inf, as for its zeros");
  ExpectRefusal([](Good& g) { g.call.scores = {g.data, DType::kF64, ScoreStage::kRaw, 8}; }, bad,
                "Op 'node': scores have type f64; needs f32, f16 or bf16 (f64 with f64 'query')");
  ExpectRefusal([](Good& g) { g.call.key.type = DType::kF64; }, StatusCode::kRefused,
                "Op 'node': no kernel for f64 'key' with f32 'query'; have f32, f16, bf16 in any mix, "
                "'key' and 'value' also int8, int4, float8e4m3fn, or f64 alone");
  ExpectRefusal(
      [](Good& g) { g.call.key.type = DType::kI8; }, bad,
      "Op 'node': 'key' has type int8 and no scale; needs a scale with int8, int4 and float8e4m3fn, and none with "
      "others");
  const float scale = 1;
  ExpectRefusal(
      [&](Good& g) { g.call.value.quant.scale = &scale; }, bad,
      "Op 'node': 'value' has type f32 and a scale; needs a scale with int8, int4 and float8e4m3fn, and none with "
      "others");
  const int64_t rows[] = {1, 2};
  ExpectRefusal([&](Good& g) { g.call.positions.query_length = rows; }, bad,
                "Op 'node': query length of batch 1 is 2; needs 0 to S = 1");
  ExpectRefusal([](Good& g) { g.call.norm = {g.data, DType::kF32, 0.0F}; }, bad,
                "Op 'node': norm epsilon is 0; needs a finite number above 0");
}

TEST(CheckAttention, NamesWhatNoCallCanMean) {
  const auto bad = StatusCode::kInvalidInput;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  ExpectRefusal([](Good& g) { g.call.query.heads = 0; }, bad,
                "Op 'node': input 'query' has shape [B 2, heads 0, tokens 1, D 16]; needs B and tokens >= 0, heads and "
                "D > 0");
  ExpectRefusal([](Good& g) { g.call.key.tokens = int64_t{1} << 31; }, bad,
                "Op 'node': input 'key' has 2147483648 tokens; needs at most 2147483583");
  ExpectRefusal([](Good& g) { g.call.value.batch = 1; }, bad,
                "Op 'node': input 'value' has B = 1 (shape [B 1, heads 2, tokens 8, D 16]); needs B = 2 like 'query'");
  ExpectRefusal([](Good& g) { g.call.value.heads = 1; }, bad,
                "Op 'node': input 'value' has 1 heads; needs 2 like 'key'");
  ExpectRefusal([](Good& g) { g.call.output.tokens = 2; }, bad,
                "Op 'node': output has shape [B 2, heads 4, tokens 2, D 16]; needs [B 2, heads 4, tokens 1, D 16]");
  ExpectRefusal([](Good& g) { g.call.spec.scale = kInfinity; }, bad,
                "Op 'node': attribute 'scale' is inf; needs a finite number");
  ExpectRefusal([](Good& g) { g.call.spec.window_left = -2; }, bad,
                "Op 'node': window is (-2, -1); needs -1 (unlimited) or more on each side");
  ExpectRefusal(
      [](Good& g) {
        g.call.spec.head_sink = g.data;
        g.call.spec.head_sink_type = DType::kI64;
      },
      bad, "Op 'node': input 'head_sink' has type int64; needs f32, f16 or bf16");
  ExpectRefusal([](Good& g) { g.position[0] = int64_t{1} << 31; }, bad,
                "Op 'node': position of query row 0 of batch 0 is 2147483648; needs a magnitude of at most 2147483583");
  constexpr int64_t kFarOff[2] = {0, std::numeric_limits<int64_t>::max()};
  ExpectRefusal(  // where no mask has columns either
      [&](Good& g) {
        g.call.mask = {};
        g.call.positions.first_column = kFarOff;
      },
      bad, "Op 'node': first column of batch 1 is 9223372036854775807; needs a magnitude of at most 2147483583");
  ExpectRefusal(  // beside a key mask too
      [](Good& g) {
        g.call.key_mask = {g.data, DType::kBool, 8};
        g.position[1] = std::numeric_limits<int64_t>::max();
      },
      bad,
      "Op 'node': position of query row 0 of batch 1 is 9223372036854775807; needs a magnitude of at most 2147483583");
  ExpectRefusal([](Good& g) { g.call.norm = {g.data, DType::kBool, 1e-6F}; }, bad,
                "Op 'node': norm weight has type bool; needs f32, f16 or bf16 (f64 with f64 data)");
}

TEST(CheckAttention, NamesMasksAndTablesThatItCannotRead) {
  const auto bad = StatusCode::kInvalidInput;
  ExpectRefusal(
      [](Good& g) {
        g.call.query.tokens = g.call.output.tokens = 9;
        g.call.key_mask = {g.data, DType::kBool, 8};
      },
      bad, "Op 'node': input 'key_mask' has T = 8 columns; needs at least the S = 9 new tokens");
  ExpectRefusal([](Good& g) { g.call.key_mask = {g.data, DType::kF32, 8}; }, bad,
                "Op 'node': input 'key_mask' has type f32; needs int64, int32 or bool");
  ExpectRefusal([](Good& g) { g.call.mask = {g.data, DType::kI32, 0, 0, 0, 1, 8}; }, bad,
                "Op 'node': mask has type int32; needs bool, f32, f16 or bf16 (f64 with f64 'query')");
  ExpectRefusal([](Good& g) { g.call.mask = {g.data, DType::kF32, 0, 0, 0, 1, -1}; }, bad,
                "Op 'node': mask has -1 columns; needs 0 or more");
  ExpectRefusal(
      [](Good& g) {
        g.call.mask = {g.data, DType::kF32, 0, 0, 0, 1, 8};
        g.call.positions.first_column = g.length;
        g.length[1] = 8;
        g.length[0] = 8;
        g.call.mask.keys = 7;
      },
      bad, "Op 'node': mask of batch 0 begins in column 8; needs 0 to 7");
  ExpectRefusal(
      [](Good& g) {
        g.call.scores = {g.data, DType::kF32, ScoreStage::kMasked, 7};
        g.call.positions.first_column = g.length;
      },
      bad, "Op 'node': scores of batch 0 begin in column 8; needs 0 to 7");
  ExpectRefusal([](Good& g) { g.call.rotary = {g.data, nullptr, DType::kF32, 64, 8, false}; }, bad,
                "Op 'node': input 'sin_cache' is absent; needs the shape of 'cos_cache'");
  ExpectRefusal([](Good& g) { g.call.rotary = {g.data, g.data, DType::kF64, 64, 8, false}; }, bad,
                "Op 'node': input 'cos_cache' has type f64; needs f32, f16 or bf16 (f64 with f64 data)");
}

// Numbers at the ends of int64: refused like any other, without an overflow on the way.
TEST(CheckAttention, RefusesTheLargestAndTheSmallestNumbers) {
  constexpr int64_t least = std::numeric_limits<int64_t>::min();
  constexpr int64_t most = std::numeric_limits<int64_t>::max();
  const auto refuses = [](const std::function<void(Good&)>& spoil) {
    Good good;
    spoil(good);
    return CheckAttention(good.call, "test").code() == StatusCode::kInvalidInput;
  };
  EXPECT_TRUE(refuses([](Good& g) { g.position[0] = least; }));
  EXPECT_TRUE(refuses([](Good& g) { g.position[1] = most; }));
  EXPECT_TRUE(refuses([](Good& g) { g.call.key.batch = g.call.query.batch = most; }));
  EXPECT_TRUE(refuses([](Good& g) { g.call.rotary = {g.data, g.data, DType::kF32, 64, most, false}; }));
  static const int64_t kept[16] = {};
  EXPECT_TRUE(refuses([](Good& g) {
    g.call.key_mask = {kept, DType::kI64, 8};
    g.position[0] = most;
    g.call.query.tokens = g.call.output.tokens = 2;
    g.call.rotary = {g.data, g.data, DType::kF32, 64, 8, false};
  }));
  static const int64_t columns[2] = {0, -1};
  EXPECT_TRUE(refuses([](Good& g) {
    g.call.mask = {g.data, DType::kF32, 0, 0, 0, 1, 8};
    g.call.positions.first_column = columns;
  }));
  static const int64_t last[2] = {most, most};
  for (const int64_t keys : {least, int64_t{8}, most})
    EXPECT_TRUE(refuses([&](Good& g) {
      g.call.scores = {g.data, DType::kF32, ScoreStage::kWeights, keys};
      g.call.positions.first_column = last;
    }));
}

TEST(CheckAppend, RefusesTheLargestAndTheSmallestNumbers) {
  constexpr int64_t numbers[] = {std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()};
  for (const int64_t number : numbers) {
    Good good;
    const int64_t odd[] = {number, 4};
    const int64_t fine[] = {4, 4};
    AppendCall call;
    call.fresh = HeadsView::Bsnh(good.fresh, DType::kF32, 2, 4, 2, 16);
    call.present = MutableHeadsView::Bnsh(good.data, DType::kF32, 2, 2, 8, 16);
    call.past = Const(call.present);
    call.past_length = fine;
    ASSERT_TRUE(CheckAppend(call, "test").ok());
    call.past_length = odd;
    EXPECT_FALSE(CheckAppend(call, "test").ok());
    call.past_length = fine;
    call.length = odd;
    EXPECT_FALSE(CheckAppend(call, "test").ok());
    call.length = nullptr;
    call.skip = odd;
    EXPECT_FALSE(CheckAppend(call, "test").ok());
  }
}

TEST(CheckAppend, NamesWhatNoCallCanMean) {
  Good good;
  const int64_t past_length[] = {4, 9};
  const int64_t dropped[] = {0, 13};
  const auto message = [&](const std::function<void(AppendCall&)>& spoil) {
    AppendCall call;
    call.fresh = HeadsView::Bsnh(good.fresh, DType::kF32, 2, 4, 2, 16);
    call.present = MutableHeadsView::Bnsh(good.data, DType::kF32, 2, 2, 8, 16);
    call.past = Const(call.present);
    spoil(call);
    return CheckAppend(call, "Op 'node'").message();
  };
  EXPECT_EQ(message([](AppendCall& c) { c.fresh.heads = 3; }),
            "Op 'node': new rows have shape [B 2, heads 3, tokens 4, D 16]; need B, heads and D of the present [B 2, "
            "heads 2, tokens 8, D 16]");
  EXPECT_EQ(
      message([](AppendCall& c) { c.past.head_size = 8; }),
      "Op 'node': input 'past' has shape [B 2, heads 2, tokens 8, D 8]; needs B, heads and D of the present [B 2, "
      "heads 2, tokens 8, D 16]");
  EXPECT_EQ(message([](AppendCall& c) { c.past.type = DType::kF16; }),
            "Op 'node': input 'past' has type f16; needs f32 like the present");
  EXPECT_EQ(message([](AppendCall& c) { c.fresh.type = DType::kI8; }),
            "Op 'node': new rows have type int8; need f32, f16 or bf16");
  EXPECT_EQ(message([&](AppendCall& c) { c.past_length = past_length; }),
            "Op 'node': past length of batch 1 is 9; needs 0 to 8, the rows of 'past'");
  EXPECT_EQ(message([&](AppendCall& c) {
              c.past_length = past_length;
              c.past = {};
            }),
            "Op 'node': past length of batch 0 is 4; needs 0 to 0, the rows of 'past'");
  EXPECT_EQ(message([&](AppendCall& c) {
              c.length = past_length;
              c.skip = dropped;
            }),
            "Op 'node': rows dropped of batch 1 are 13; needs 0 to 4");
}

TEST(CheckAppend, RefusesTypesThatNoKernelAppends) {
  Good good;
  AppendCall call;
  call.present = MutableHeadsView::Bnsh(good.data, DType::kF32, 2, 2, 8, 16);
  for (const DType type : {DType::kI64, DType::kBool, DType::kF64}) {
    call.fresh = HeadsView::Bsnh(good.fresh, type, 2, 4, 2, 16);
    EXPECT_EQ(CheckAppend(call, "test").message(),
              std::string("test: no kernel that appends ") + NameOf(type) +
                  " to f32; have f32, f16 and bf16 to those, int8, int4 and float8e4m3fn, and f64 to f64");
  }
}

TEST(CheckAppend, RefusesALengthOverTheCapacity) {
  Good good;
  AppendCall call;
  call.fresh = HeadsView::Bsnh(good.fresh, DType::kF32, 2, 4, 2, 16);
  call.present = MutableHeadsView::Bnsh(good.data, DType::kF32, 2, 2, 8, 16);
  call.past = Const(call.present);
  const int64_t past_length[] = {4, 5};
  const int64_t length[] = {8, 9};
  call.past_length = past_length;
  call.length = length;
  EXPECT_EQ(CheckAppend(call, "Op 'node'").message(),
            "Op 'node': length of batch 1 is 9; needs 5 to 8 (past 5 + 4 new, capacity 8)");
}

// A key's and a value's append that share nothing: 2 sequences, 2 heads, 4 past rows and 1 new one.
struct GoodAppends {
  static constexpr int64_t kPast = 4, kPresent = 5, kD = 16;
  std::vector<float> memory = std::vector<float>(size_t{16} * 2 * 2 * kPresent * kD);
  int64_t past_length[2] = {kPast, kPast};
  AppendCall key = At(0), value = At(4);

  float* Part(int64_t i) { return memory.data() + i * 2 * 2 * kPresent * kD; }
  AppendCall At(int64_t part) {
    AppendCall call;
    call.past = HeadsView::Bnsh(Part(part), DType::kF32, 2, 2, kPast, kD);
    call.fresh = HeadsView::Bsnh(Part(part + 1), DType::kF32, 2, 1, 2, kD);
    call.present = MutableHeadsView::Bnsh(Part(part + 2), DType::kF32, 2, 2, kPresent, kD);
    call.past_length = past_length;
    return call;
  }
  std::string Message() const { return CheckAppend(key, value, "Op 'node'").message(); }
};

TEST(CheckAppend, RefusesMemoryThatOneAppendWritesWhileItIsRead) {
  const auto message = [](const std::function<void(GoodAppends&)>& spoil) {
    GoodAppends appends;
    EXPECT_EQ(appends.Message(), "");
    spoil(appends);
    return appends.Message();
  };
  const std::string past =
      "Op 'node': input 'past_key' shares memory with 'present_key' and has 4 rows; needs its first element and its 5 "
      "rows, or memory of its own";
  EXPECT_EQ(message([](auto& a) { a.key.past.data = a.key.present.data; }), past);
  EXPECT_EQ(message([](auto& a) { a.key.past.data = a.Part(2) + 3 * 16; }), past);
  EXPECT_EQ(message([](auto& a) { a.key.past.data = a.Part(2) - 16; }), past);
  EXPECT_EQ(message([](auto& a) { a.key.past.data = a.Part(2) - 4 * 4 * 16; }), "") << "ends where the present begins";
  EXPECT_EQ(message([](auto& a) { a.value.fresh.data = a.value.present.data; }),
            "Op 'node': input 'value' shares memory with 'present_value'; needs memory of its own");
  const auto shares = [](const char* what, const char* with) {
    return fmt::format("Op 'node': {} shares memory with '{}'; needs memory of its own", what, with);
  };
  EXPECT_EQ(message([](auto& a) { a.key.past.data = a.value.present.data; }),
            shares("input 'past_key'", "present_value"));
  EXPECT_EQ(message([](auto& a) { a.key.fresh.data = a.Part(6) + 16; }), shares("input 'key'", "present_value"));
  EXPECT_EQ(message([](auto& a) { a.value.past.data = a.key.present.data; }),
            shares("input 'past_value'", "present_key"));
  EXPECT_EQ(message([](auto& a) { a.value.fresh.data = a.key.present.data; }), shares("input 'value'", "present_key"));
  EXPECT_EQ(message([](auto& a) { a.value.present.data = a.Part(2) + 16; }),
            shares("output 'present_value'", "present_key"));
}

TEST(CheckAppend, TakesAPastThatLiesRowByRowWhereThePresentDoes) {
  GoodAppends appends;
  appends.key.past = Const(appends.key.present);
  EXPECT_EQ(appends.Message(), "");
  // One head of one sequence: whatever the strides between heads are.
  for (auto* view : {&appends.key.past, &appends.key.fresh}) view->batch = view->heads = 1;
  appends.key.present.batch = appends.key.present.heads = 1;
  appends.key.past.head_stride = appends.key.past.batch_stride = 7;
  EXPECT_EQ(CheckAppend(appends.key, "Op 'node'").message(), "");
}

TEST(CheckAppend, TakesKeysAndValuesThatAreInterleaved) {
  GoodAppends appends;  // [B, key and value, heads, tokens, D]
  const int64_t half = appends.key.present.batch_stride;
  for (auto* view : {&appends.key.present, &appends.value.present}) view->batch_stride = 2 * half;
  appends.key.present.data = appends.Part(8);
  appends.value.present.data = appends.Part(8) + half;
  appends.key.past = Const(appends.key.present);
  appends.value.past = Const(appends.value.present);
  EXPECT_EQ(appends.Message(), "");
}

}  // namespace
}  // namespace kvshare
