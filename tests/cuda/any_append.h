// A random call of everything that AppendCall can say.
#pragma once

#include <ostream>

#include "tests/cuda/drawn.h"

namespace kvshare::cuda::testing {

struct AnyAppend {
  Draw draw;
  Heads past, fresh, present;
  Array norm;
  Rotary rotary;
  Rule past_length, fresh_length, length, skip;
  AppendCall call;
  int64_t B, H, S, D, rows;  // of past

  explicit AnyAppend(uint64_t seed) : draw(seed) {
    B = draw.Of<int64_t>({1, 2, 3});
    H = draw.Of<int64_t>({1, 2, 3});
    S = draw.Of<int64_t>({0, 1, 1, 2, 5, 9});
    D = draw.Of<int64_t>({1, 2, 7, 16, 33, 64, 96, 256});
    rows = draw.Of<int64_t>({0, 1, 6, 20, 37});
    const DType cache = draw.Of({DType::kF32, DType::kF16, DType::kBF16, DType::kI8, DType::kI4, DType::kF8E4M3});
    const bool staged = draw.OneIn(3);
    const bool in_place = !staged && rows > 0 && draw.OneIn(2);
    fresh.Make(draw, draw.Float(), B, H, S, D);
    present.Make(draw, cache, B, H, in_place ? rows : rows + (staged ? S : draw.Between(0, S + 2)), D, 0.2);
    if (kvshare::testing::HoldsIntegers(cache) && S > 0 && draw.OneIn(3))  // where they become codes
      fresh.memory.Set(draw.Between(0, fresh.memory.size() - 1),
                       draw.Of({std::numeric_limits<double>::quiet_NaN(), -std::numeric_limits<double>::infinity()}));
    call.fresh = fresh.view;
    call.present = present.Mutable();
    if (in_place) {
      call.past = present.view;
    } else if (rows > 0) {
      past.Make(draw, cache, B, H, rows, D, 0.2);
      past.scale = present.scale;
      past.view.quant = present.view.quant;
      call.past = past.view;
    }
    if (draw.OneIn(4)) {
      norm = Array(draw.Float(), D);
      norm.Fill(draw.random, 1);
      call.norm = {norm.data(), norm.type, 1e-5F};
    }
    if (D > 1 && draw.OneIn(3)) {
      rotary.Make(draw, D, kPositions, B, std::max<int64_t>(S, 1));
      call.rotary = rotary.view;
      call.rotary_positions = rotary.positions;
    }
    if (rows > 0 && (staged || draw.OneIn(4)))
      WindowSized(staged);
    else
      Positions();
  }
  std::vector<int64_t> Numbers(int64_t least, int64_t most) {
    std::vector<int64_t> numbers(static_cast<size_t>(B));
    for (int64_t& number : numbers) number = draw.Between(least, most);
    return numbers;
  }
  void Positions() {
    std::vector<int64_t> before = Numbers(0, rows), tokens(static_cast<size_t>(B), S);
    if (draw.OneIn(3)) {
      tokens = Numbers(0, S);
      call.fresh_length = fresh_length.Say(draw, tokens, S);
    }
    std::vector<int64_t> dropped(static_cast<size_t>(B), 0), after = before;
    const bool at_end = draw.OneIn(3);
    if (draw.OneIn(3))
      for (int64_t b = 0; b < B; ++b) dropped[b] = draw.Between(0, at_end ? S - tokens[b] : before[b] + S);
    for (int64_t b = 0; b < B; ++b) after[b] = before[b] + tokens[b] - (at_end ? 0 : dropped[b]);
    if (*std::max_element(dropped.begin(), dropped.end()) > 0) call.skip = skip.Say(draw, dropped, rows + S);
    if (at_end)
      call.past_length = Lengths::AtEnd();
    else
      call.past_length = past_length.Say(draw, before, rows);
    if (at_end || draw.OneIn(2)) call.length = length.Say(draw, after, call.present.tokens);
  }
  void WindowSized(bool staged) {
    call.cache = {rows, draw.Between(1, rows), staged};
    std::vector<int64_t> tokens(static_cast<size_t>(B), S);
    if (draw.OneIn(3)) {
      tokens = Numbers(0, S);
      call.fresh_length = fresh_length.Say(draw, tokens, S);
    }
    std::vector<int64_t> all = Numbers(0, 3 * rows);
    for (int64_t b = 0; b < B; ++b) all[b] += tokens[b];
    call.length = length.Say(draw, all, int64_t{1} << 20);
    call.past_length = Lengths::AtEnd();
  }
  AppendCall OnDevice(Mirror& mirror) const {
    for (const Heads* heads : {&past, &fresh, &present}) heads->AddTo(mirror);
    mirror.Add(norm);
    rotary.AddTo(mirror);
    for (const Rule* rule : {&past_length, &fresh_length, &length, &skip}) rule->AddTo(mirror);
    AppendCall device = call;
    Move(mirror, device.past);
    Move(mirror, device.fresh);
    Move(mirror, device.present);
    MoveRows(mirror, device);
    for (Lengths* rule : {&device.past_length, &device.fresh_length, &device.length, &device.skip}) Move(mirror, *rule);
    return device;
  }
};

inline void PrintTo(const AnyAppend& any, std::ostream* out) {
  const AppendCall& call = any.call;
  *out << NameOf(call.fresh.type) << " to " << NameOf(call.present.type) << ", B " << any.B << " H " << any.H << " S "
       << any.S << " D " << any.D << " past " << any.rows << " present " << call.present.tokens
       << (call.past.data == call.present.data ? " in place" : "") << (call.norm ? " norm" : "")
       << (call.rotary ? " rotary" : "") << (call.skip ? " rows dropped" : "")
       << (call.cache ? call.cache.staged ? " staged cache" : " window-sized cache" : "");
}

}  // namespace kvshare::cuda::testing
