// Random calls of everything that AttentionCall and AppendCall can say, by the backend as adapters call it, against the
// oracle: types of every tensor, strides, broadcasts, and each kind of rule for lengths. Each call is captured in a
// graph while its numbers on the device are wild, and replayed with its own.
#include <array>
#include <initializer_list>

#include "core/place_sequences.h"
#include "tests/cuda/captured.h"
#include "tests/cuda/emulated.h"

namespace kvshare::cuda {
namespace {

using testing::Array;
using testing::Captured;
using testing::DeviceMemory;
using testing::ExpectClose;
using testing::TheBackend;
using testing::ToleranceOf;

class Draw {
 public:
  explicit Draw(uint64_t seed) : random(static_cast<uint32_t>(seed)) {}

  template <typename T>
  T Of(std::initializer_list<T> from) {
    return from.begin()[random() % from.size()];
  }
  // Of [least, most].
  int64_t Between(int64_t least, int64_t most) {
    return least + static_cast<int64_t>(random() % static_cast<uint64_t>(most - least + 1));
  }
  bool OneIn(uint32_t n) { return random() % n == 0; }
  DType Float() { return Of({DType::kF32, DType::kF16, DType::kBF16}); }

  std::mt19937 random;
};

// Blocks of host memory, and their copies on the device.
class Mirror {
 public:
  // A block that stays where it is.
  void Add(const void* host, size_t bytes) { Add({static_cast<const char*>(host), bytes, nullptr, false}); }
  void Add(const Array& array) { Add(array.data(), array.bytes.size()); }
  // The same of lengths or positions.
  template <typename T>
  void AddNumbers(const std::vector<T>& numbers) {
    Add({reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(T), nullptr, true});
  }
  // Every block again, as the host has it.
  void Upload() const {
    for (const Block& block : blocks_) ASSERT_TRUE(cuda::Upload(block.device, block.host, block.bytes).ok());
  }
  // Numbers become what no host has judged.
  void MakeNumbersWild(Draw& draw) const {
    for (const Block& block : blocks_) {
      if (!block.numbers) continue;
      std::vector<char> wild(block.bytes);
      for (char& byte : wild) byte = static_cast<char>(draw.random());
      ASSERT_TRUE(cuda::Upload(block.device, wild.data(), block.bytes).ok());
    }
  }
  // Where the host's address `p` lies on the device.
  template <typename T>
  T* Of(T* p) const {
    if (p == nullptr) return nullptr;
    const auto* const at = reinterpret_cast<const char*>(p);
    for (const Block& block : blocks_)
      if (block.host <= at && at <= block.host + block.bytes)
        return reinterpret_cast<T*>(block.device + (at - block.host));
    ADD_FAILURE() << "an address that nobody has added";
    return nullptr;
  }
  void Download(Array& array) const {
    if (array.size() == 0) return;
    ASSERT_TRUE(cuda::Download(array.data(), Of(array.data()), array.bytes.size()).ok());
  }

 private:
  struct Block {
    const char* host;
    size_t bytes;
    char* device;
    bool numbers;
  };
  void Add(Block block) {
    if (block.host == nullptr) return;
    block.device = static_cast<char*>(memory_.Copy(block.host, block.bytes));
    blocks_.push_back(block);
  }

  std::vector<Block> blocks_;
  DeviceMemory memory_;
};

// A tensor of heads in memory of its own: in either layout, with room before it, between its rows and behind.
struct Heads {
  Array memory;
  std::vector<float> scale;
  HeadsView view;

  void Make(Draw& draw, DType type, int64_t B, int64_t heads, int64_t tokens, int64_t D, double spread = 1) {
    const int64_t even = RowElements(type, D);
    const bool bytes = type != DType::kI4;
    const int64_t row = draw.OneIn(5) ? even + draw.Of<int64_t>({bytes ? 1 : 2, 2, 32}) : even;
    const int64_t capacity = draw.OneIn(4) ? tokens + draw.Between(1, 3) : tokens;
    const int64_t before = draw.OneIn(6) ? draw.Of<int64_t>({bytes ? 1 : 2, 2, 32}) : 0;
    memory = Array(type, before + B * heads * capacity * row);
    memory.Fill(draw.random, spread);
    view = {At(static_cast<const void*>(memory.data()), type, before), type, B, heads, tokens, D};
    view.batch_stride = heads * capacity * row;
    const bool bsnh = draw.OneIn(2);
    view.head_stride = bsnh ? row : capacity * row;
    view.token_stride = bsnh ? heads * row : row;
    if (!IsQuantized(type)) return;
    const bool per_channel = draw.OneIn(2);
    const double one = type == DType::kI8 ? 0.02 : type == DType::kI4 ? 0.25 : 1.0;
    scale.resize(static_cast<size_t>(per_channel ? heads * D : 1));
    for (float& s : scale)
      s = static_cast<float>(one * (0.5 + 0.5 * static_cast<double>(kvshare::testing::Uniform(draw.random))));
    view.quant = {scale.data(), per_channel};
  }
  MutableHeadsView Mutable() {
    return {At(memory.data(), view.type, view.data == memory.data() ? 0 : Room()),
            view.type,
            view.batch,
            view.heads,
            view.tokens,
            view.head_size,
            view.batch_stride,
            view.head_stride,
            view.token_stride,
            view.quant};
  }
  int64_t Room() const {
    const auto bytes = static_cast<const std::byte*>(view.data) - memory.bytes.data();
    return bytes * (view.type == DType::kI4 ? 2 : 1) / static_cast<int64_t>(SizeOf(view.type));
  }
  void AddTo(Mirror& mirror) const {
    mirror.Add(memory);
    mirror.Add(scale.data(), scale.size() * sizeof(float));
  }
};

template <typename View>
void Move(const Mirror& mirror, View& view) {
  view.data = mirror.Of(view.data);
  view.quant.scale = mirror.Of(view.quant.scale);
}

// Numbers of a rule, of either type.
struct Rule {
  std::vector<int64_t> wide;
  std::vector<int32_t> narrow;

  // `numbers` [B], said in a way that is drawn.
  Lengths Say(Draw& draw, std::vector<int64_t> numbers, int64_t bound) {
    Lengths rule;
    rule.bound = bound;
    if (draw.OneIn(4) && std::adjacent_find(numbers.begin(), numbers.end(), std::not_equal_to<>()) == numbers.end() &&
        !numbers.empty())
      return Lengths::Same(numbers[0]);
    rule.kind = draw.Of({Lengths::Kind::kGiven, Lengths::Kind::kLessOne});
    if (rule.kind == Lengths::Kind::kLessOne)
      for (int64_t& number : numbers) --number;
    wide = numbers;
    narrow.assign(numbers.begin(), numbers.end());
    rule.type = draw.Of({DType::kI32, DType::kI64});
    rule.data = rule.type == DType::kI64 ? static_cast<const void*>(wide.data()) : narrow.data();
    return rule;
  }
  void AddTo(Mirror& mirror) const {
    mirror.AddNumbers(wide);
    mirror.AddNumbers(narrow);
  }
};

void Move(const Mirror& mirror, Lengths& rule) {
  if (rule.data == nullptr) return;
  rule.data = mirror.Of(rule.data);
  rule.memory = Memory::kDevice;
}

// Tables of the rotary embedding, and the positions that look into them.
struct Rotary {
  Array cos, sin;
  std::vector<int64_t> ids;
  RotaryView view;
  RotaryPositions positions;

  void Make(Draw& draw, int64_t D, int64_t rows, int64_t B, int64_t S) {
    view.type = draw.Float();
    view.half = draw.Between(1, D / 2);
    view.max_positions = rows;
    view.interleaved = draw.OneIn(2);
    for (Array* table : {&cos, &sin}) {
      *table = Array(view.type, rows * view.half);
      table->Fill(draw.random, 0.7);
    }
    view.cos = cos.data();
    view.sin = sin.data();
    if (draw.OneIn(2)) return;
    positions.same_start = draw.OneIn(2);
    ids.resize(static_cast<size_t>(B * S));
    for (int64_t& id : ids) id = draw.Between(0, rows - S - 1);
    positions.data = ids.data();
  }
  void AddTo(Mirror& mirror) const {
    mirror.Add(cos);
    mirror.Add(sin);
    mirror.AddNumbers(ids);
  }
};

template <typename Call>
void MoveRows(const Mirror& mirror, Call& call) {
  call.norm.weight = mirror.Of(call.norm.weight);
  call.rotary.cos = mirror.Of(call.rotary.cos);
  call.rotary.sin = mirror.Of(call.rotary.sin);
  if (call.rotary_positions.data == nullptr) return;
  call.rotary_positions.data = mirror.Of(call.rotary_positions.data);
  call.rotary_positions.memory = Memory::kDevice;
}

constexpr int64_t kPositions = 700;  // rows of rotary tables

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

void PrintTo(const AnyAttention& any, std::ostream* out) { any.PrintTo(*out); }

// `rows`: the tensor's elements without what lies between its rows, which becomes `rest`.
struct Parts {
  Array rows, rest;

  explicit Parts(const Heads& heads) {
    const HeadsView& v = heads.view;
    const int64_t row = RowElements(v.type, v.head_size);  // the nibble that fills a byte belongs to its row
    rest = heads.memory;
    rows = Array(v.type, v.batch * v.heads * v.tokens * row);
    int64_t i = 0;
    for (int64_t b = 0; b < v.batch; ++b)
      for (int64_t head = 0; head < v.heads; ++head)
        for (int64_t t = 0; t < v.tokens; ++t, i += row)
          for (int64_t d = 0; d < row; ++d) {
            const int64_t at = heads.Room() + v.Offset(b, head, t) + d;
            if (d < v.head_size) rows.Set(i + d, heads.memory.Get(at));
            rest.Set(at, 0);
          }
  }
};

// Rows agree, and what lies between them is what it was.
void ExpectAgree(const Parts& want, const Parts& got, int64_t row, double tolerance, double least) {
  ExpectClose(want.rows, got.rows, row, tolerance, least);
  EXPECT_EQ(want.rest.bytes, got.rest.bytes) << "memory between the rows";
}

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

void PrintTo(const AnyAppend& any, std::ostream* out) {
  const AppendCall& call = any.call;
  *out << NameOf(call.fresh.type) << " to " << NameOf(call.present.type) << ", B " << any.B << " H " << any.H << " S "
       << any.S << " D " << any.D << " past " << any.rows << " present " << call.present.tokens
       << (call.past.data == call.present.data ? " in place" : "") << (call.norm ? " norm" : "")
       << (call.rotary ? " rotary" : "") << (call.skip ? " rows dropped" : "")
       << (call.cache ? call.cache.staged ? " staged cache" : " window-sized cache" : "");
}

// `work` is captured while the numbers on the device are wild, and replayed with those of the host.
void RunWithNumbersThatComeLater(const Mirror& mirror, Draw& draw, const Captured::Work& work) {
  mirror.MakeNumbersWild(draw);
  Captured captured(work);
  mirror.Upload();
  captured.Replay();
}

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
