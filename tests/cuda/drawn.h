// What random calls are made of: numbers that are drawn, tensors in memory of their own, and rules for lengths; on the
// host, and mirrored on the device.
#pragma once

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <random>
#include <vector>

#include "tests/cuda/captured.h"
#include "tests/cuda/emulated.h"

namespace kvshare::cuda::testing {

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
inline void Move(const Mirror& mirror, View& view) {
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

inline void Move(const Mirror& mirror, Lengths& rule) {
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
inline void MoveRows(const Mirror& mirror, Call& call) {
  call.norm.weight = mirror.Of(call.norm.weight);
  call.rotary.cos = mirror.Of(call.rotary.cos);
  call.rotary.sin = mirror.Of(call.rotary.sin);
  if (call.rotary_positions.data == nullptr) return;
  call.rotary_positions.data = mirror.Of(call.rotary_positions.data);
  call.rotary_positions.memory = Memory::kDevice;
}

constexpr int64_t kPositions = 700;  // rows of rotary tables

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
inline void ExpectAgree(const Parts& want, const Parts& got, int64_t row, double tolerance, double least) {
  ExpectClose(want.rows, got.rows, row, tolerance, least);
  EXPECT_EQ(want.rest.bytes, got.rest.bytes) << "memory between the rows";
}

// `work` is captured while the numbers on the device are wild, and replayed with those of the host.
inline void RunWithNumbersThatComeLater(const Mirror& mirror, Draw& draw, const Captured::Work& work) {
  mirror.MakeNumbersWild(draw);
  Captured captured(work);
  mirror.Upload();
  captured.Replay();
}

}  // namespace kvshare::cuda::testing
