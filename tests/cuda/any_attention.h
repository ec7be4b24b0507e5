// A random call of everything that AttentionCall can say.
#pragma once

#include <array>
#include <ostream>

#include "core/place_sequences.h"
#include "tests/cuda/drawn.h"

namespace kvshare::cuda::testing {

struct AnyAttention {
  Draw draw;
  Heads query, key, value, output;
  Array mask, key_mask, sinks, norm, scores;
  Rotary rotary;
  Rule length, query_position, query_length, first_column;
  AttentionCall call;
  int64_t B, Hkv, group, S, T, D, Dv;

  explicit AnyAttention(uint64_t seed) : draw(seed) {
    B = draw.Of<int64_t>({1, 1, 2, 3});
    Hkv = draw.Of<int64_t>({1, 1, 2});
    group = draw.Of<int64_t>({1, 2, 3, 8, 16});
    S = draw.Of<int64_t>({1, 1, 1, 2, 3, 5, 9, 33});
    T = draw.OneIn(30) ? S : S + draw.Between(0, 150);
    D = draw.Of<int64_t>({8, 16, 32, 64, 64, 96, 128, 192, 256, 320, 512, 3, 7, 20, 36, 54, 100, 520});
    if (D > 128 && S > 5) S = 5;
    Dv = draw.OneIn(6) ? draw.Of<int64_t>({1, 5, 16, 64, 130}) : D;
    const DType type = draw.Float();
    const DType cache = draw.OneIn(2)
                            ? type
                            : draw.Of({DType::kF32, DType::kF16, DType::kBF16, DType::kI8, DType::kI4, DType::kF8E4M3});
    const DType of_values = draw.OneIn(8) ? draw.Of({DType::kF32, DType::kF16, DType::kI8, DType::kF8E4M3}) : cache;
    query.Make(draw, type, B, Hkv * group, S, D);
    key.Make(draw, cache, B, Hkv, T, D);
    value.Make(draw, of_values, B, Hkv, T, Dv);
    output.Make(draw, draw.OneIn(8) ? draw.Float() : type, B, Hkv * group, S, Dv);
    call.query = query.view;
    call.key = key.view;
    call.value = value.view;
    call.output = output.Mutable();
    AttentionSpec& spec = call.spec;
    spec.scale = draw.Of({1.0, 3.0, -0.5}) / std::sqrt(static_cast<double>(D));
    spec.softcap = draw.OneIn(4) ? draw.Of({0.5F, 5.0F, 50.0F}) : 0.0F;
    spec.window_left = draw.OneIn(2) ? kUnlimited : draw.Of<int64_t>({0, 1, 7, 40, 400});
    spec.window_right = draw.Of<int64_t>({kUnlimited, 0, 0, 0, 3});
    spec.smooth_softmax = draw.OneIn(6);
    if (draw.OneIn(5)) Sinks();
    if (draw.OneIn(5)) Norm();
    if (D > 1 && draw.OneIn(4)) {
      rotary.Make(draw, D, kPositions, B, S);
      call.rotary = rotary.view;
      call.rotary_positions = rotary.positions;
    }
    if (draw.OneIn(6))
      KeyMask();
    else
      Positions();
    if (draw.OneIn(3)) Mask();
    if (draw.OneIn(6)) Scores();
  }

  void Sinks() {
    call.spec.head_sink_type = draw.Float();
    sinks = Array(call.spec.head_sink_type, Hkv * group);
    sinks.Fill(draw.random, 2);
    call.spec.head_sink = sinks.data();
  }
  void Norm() {
    norm = Array(draw.Float(), D);
    norm.Fill(draw.random, 1);
    call.norm = {norm.data(), norm.type, draw.Of({1e-5F, 1e-2F})};
  }
  std::vector<int64_t> Numbers(int64_t least, int64_t most) {
    std::vector<int64_t> numbers(static_cast<size_t>(B));
    for (int64_t& number : numbers) number = draw.Between(least, most);
    return numbers;
  }
  void Positions() {
    kvshare::Positions& p = call.positions;
    if (draw.OneIn(5)) return WindowSized();
    std::vector<int64_t> lengths(static_cast<size_t>(B), T);
    if (!draw.OneIn(6)) {
      lengths = Numbers(draw.OneIn(8) ? 0 : std::min(S, T), T);
      p.length = length.Say(draw, lengths, T);
    }
    std::vector<int64_t> rows(static_cast<size_t>(B), S);
    if (draw.OneIn(3)) {
      rows = Numbers(0, S);
      p.query_length = query_length.Say(draw, rows, S);
    }
    if (draw.OneIn(2) && p.length) {
      p.query_position = Lengths::AtEnd();
    } else if (!draw.OneIn(8)) {
      for (int64_t b = 0; b < B; ++b) rows[b] = lengths[b] - rows[b] + (draw.OneIn(4) ? draw.Between(-4, 9) : 0);
      p.query_position = query_position.Say(draw, rows, T + 9);
    }
  }
  // Keys are a window-sized cache, or what it held and all new rows.
  void WindowSized() {
    WindowCache& cache = call.positions.cache;
    cache.staged = draw.OneIn(2);
    cache.capacity = cache.staged ? T - S : T;
    if (cache.capacity < 1) {
      cache = {};
      return;
    }
    cache.window = draw.Between(1, cache.capacity);
    call.spec.window_left = cache.window - 1;
    call.spec.window_right = 0;
    std::vector<int64_t> rows(static_cast<size_t>(B), S);
    if (draw.OneIn(3)) {
      rows = Numbers(0, S);
      call.positions.query_length = query_length.Say(draw, rows, S);
    }
    std::vector<int64_t> all = Numbers(1, 3 * cache.capacity);
    for (int64_t b = 0; b < B; ++b) all[b] = std::max(all[b], rows[b]);
    call.positions.length = length.Say(draw, all, int64_t{1} << 20);
    call.positions.query_position = Lengths::AtEnd();
  }
  void KeyMask() {
    const DType type = draw.Of({DType::kI64, DType::kI32, DType::kBool});
    const int64_t gap = draw.OneIn(3) ? 5 : 0;
    key_mask = Array(type, B * (T + gap));
    const int64_t keeps = draw.Of<int64_t>({0, 3, 9, 10});
    const int64_t left = draw.OneIn(2) ? draw.Between(0, T - S) : 0;
    for (int64_t i = 0; i < key_mask.size(); ++i) {
      const int64_t kept = i % (T + gap) >= left && draw.Between(0, 9) < keeps ? draw.Of<int64_t>({1, 1, 7}) : 0;
      std::memcpy(key_mask.bytes.data() + i * static_cast<int64_t>(SizeOf(type)), &kept, SizeOf(type));
    }
    call.key_mask = {key_mask.data(), type, T + gap};
    if (call.rotary && call.rotary_positions.data == nullptr)
      call.positions.query_position = query_position.Say(draw, Numbers(0, 50), T + 50);
  }
  void Mask() {
    MaskView& view = call.mask;
    view.type = draw.Of({DType::kBool, DType::kF32, DType::kF16, DType::kBF16});
    int64_t most = 0;  // columns before key 0
    if (!call.positions.cache && draw.OneIn(4)) {
      const std::vector<int64_t> first = Numbers(0, 6);
      most = *std::max_element(first.begin(), first.end());
      call.positions.first_column = first_column.Say(draw, first, 6);
    }
    const int64_t all = call.positions.cache ? 4 * T + S : T + most;
    view.keys = call.positions.cache || !draw.OneIn(4) ? all : std::max(most, all - draw.Between(0, T));
    const int64_t columns = draw.OneIn(8) ? 1 : std::max<int64_t>(view.keys, 1);
    const int64_t queries = draw.OneIn(3) ? 1 : S, heads = draw.OneIn(2) ? 1 : Hkv * group,
                  batch = draw.OneIn(2) ? 1 : B;
    view.key_stride = columns == 1 ? 0 : 1;
    view.query_stride = queries == 1 ? 0 : columns;
    view.head_stride = heads == 1 ? 0 : queries * columns;
    view.batch_stride = batch == 1 ? 0 : heads * queries * columns;
    mask = Array(view.type, batch * heads * queries * columns);
    for (int64_t i = 0; i < mask.size(); ++i) {
      const bool hidden = draw.Between(0, 9) < 3;
      if (view.type == DType::kBool)
        mask.bytes[static_cast<size_t>(i)] = static_cast<std::byte>(hidden ? 0 : 1);
      else
        mask.Set(
            i, hidden ? draw.Of({-std::numeric_limits<double>::infinity(), -1e30})  // beside either a score is nothing
                      : static_cast<double>(kvshare::testing::Normal(draw.random)));
    }
    view.data = mask.data();
  }
  void Scores() {
    MutableScoresView& view = call.scores;
    view.stage = draw.Of({ScoreStage::kRaw, ScoreStage::kSoftcapped, ScoreStage::kMasked, ScoreStage::kWeights});
    view.keys = T;
    if (!view.OfEveryKey()) view.keys += call.positions.cache ? 4 * T + S : draw.Between(6, 9);
    if (view.OfEveryKey() && call.positions.first_column) return void(view = {});
    view.type = draw.Float();
    if (!call.key_mask && draw.OneIn(3)) view.outside = -1e4F;
    scores = Array(view.type, B * Hkv * group * S * view.keys);
    view.data = scores.data();
  }

  // Keys that no row may see, whatever masks say, become NaN.
  void PoisonUnseen() {
    if (call.key_mask || call.scores.OfEveryKey()) return;
    for (int64_t b = 0; b < B; ++b) {
      const SequencePlace place = PlaceOf(call, b);
      for (int64_t j = 0; j < T; ++j) {
        bool seen = false;
        for (int64_t s = 0; s < place.query_length; ++s) {
          const int64_t distance = place.query_position + s - j;
          seen = seen || (j < place.length && (call.spec.window_left < 0 || distance <= call.spec.window_left) &&
                          (call.spec.window_right < 0 || -distance <= call.spec.window_right));
        }
        if (seen) continue;
        for (Heads* heads : {&key, &value})
          for (int64_t head = 0; head < Hkv; ++head)
            for (int64_t d = 0; d < heads->view.head_size; ++d)
              heads->memory.Set(
                  heads->Room() + heads->view.Offset(b, head, j) + d,
                  kvshare::testing::HoldsIntegers(heads->view.type) ? 1e9 : std::numeric_limits<double>::quiet_NaN());
      }
    }
  }

  AttentionCall OnDevice(Mirror& mirror) const {
    for (const Heads* heads : {&query, &key, &value, &output}) heads->AddTo(mirror);
    for (const Array* array : {&mask, &key_mask, &sinks, &norm, &scores}) mirror.Add(*array);
    rotary.AddTo(mirror);
    for (const Rule* rule : {&length, &query_position, &query_length, &first_column}) rule->AddTo(mirror);
    AttentionCall device = call;
    for (HeadsView* view : {&device.query, &device.key, &device.value}) Move(mirror, *view);
    Move(mirror, device.output);
    device.mask.data = mirror.Of(device.mask.data);
    device.key_mask.data = mirror.Of(device.key_mask.data);
    device.spec.head_sink = mirror.Of(device.spec.head_sink);
    device.scores.data = mirror.Of(device.scores.data);
    MoveRows(mirror, device);
    kvshare::Positions& p = device.positions;
    for (Lengths* rule : {&p.length, &p.query_position, &p.query_length, &p.first_column}) Move(mirror, *rule);
    return device;
  }

  void PrintTo(std::ostream& out) const {
    out << NameOf(call.query.type) << " over " << NameOf(call.key.type) << " and " << NameOf(call.value.type) << " to "
        << NameOf(call.output.type) << ", B " << B << " Hkv " << Hkv << " group " << group << " S " << S << " T " << T
        << " D " << D << " Dv " << Dv << " window " << call.spec.window_left << " " << call.spec.window_right
        << (call.norm ? " norm" : "") << (call.rotary ? " rotary" : "") << (call.key_mask ? " key mask" : "")
        << (call.positions.cache ? call.positions.cache.staged ? " staged cache" : " window-sized cache" : "")
        << (call.mask ? " mask of " : "") << (call.mask ? NameOf(call.mask.type) : "")
        << (call.spec.head_sink != nullptr || call.spec.smooth_softmax ? " sinks" : "") << " softcap "
        << call.spec.softcap << (call.scores ? " scores of stage " : "")
        << (call.scores ? std::to_string(static_cast<int>(call.scores.stage)) : "");
  }
};

inline void PrintTo(const AnyAttention& any, std::ostream* out) { any.PrintTo(*out); }

}  // namespace kvshare::cuda::testing
