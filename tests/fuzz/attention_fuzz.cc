// Bytes -> an AttentionCall or AppendCall with odd extents, lengths, positions, windows and types -> the check -> on
// accepted ones the kernels, any that serves the type, and the oracle, which must agree. Buffers end where the views
// say, rows past the lengths hold NaN: AddressSanitizer and the comparison show what reads either.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "attention/kernel_table.h"
#include "core/half.h"
#include "kvshare/attend.h"
#include "kvshare/oracle.h"

namespace kvshare {
namespace {

constexpr int64_t kMostElements = 1 << 14;  // of one tensor: keeps a run short

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), end_(data + size) {}
  uint8_t Byte() { return data_ == end_ ? 0 : *data_++; }
  int64_t Of(std::initializer_list<int64_t> values) { return values.begin()[Byte() % values.size()]; }
  int64_t Below(int64_t n) { return Byte() % n; }
  bool Rarely() { return Byte() % 32 == 1; }
  // Mostly `usual`, sometimes a number that no sane caller gives.
  int64_t Odd(int64_t usual) {
    constexpr int64_t least = std::numeric_limits<int64_t>::min();
    constexpr int64_t most = std::numeric_limits<int64_t>::max();
    return Rarely() ? Of({least, least + 1, -(int64_t{1} << 40), -2, -1, 0, 1, 2, 3, 63, 64, 65, (int64_t{1} << 31) - 1,
                          int64_t{1} << 31, int64_t{1} << 40, most - 1, most})
                    : usual;
  }

 private:
  const uint8_t* data_;
  const uint8_t* end_;
};

// Any type, integers included.
void Put(void* data, DType type, int64_t i, double value) {
  switch (type) {
    case DType::kBool: static_cast<uint8_t*>(data)[i] = value != 0 ? 1 : 0; break;
    case DType::kI32: static_cast<int32_t*>(data)[i] = static_cast<int32_t>(value); break;
    case DType::kI64: static_cast<int64_t*>(data)[i] = static_cast<int64_t>(value); break;
    default: StoreElement(data, type, i, value);
  }
}

// Exactly as many elements as asked for, on the heap.
struct Buffer {
  DType type = DType::kF32;
  int64_t count = 0;
  std::unique_ptr<std::byte[]> data;

  Buffer() = default;
  Buffer(DType t, int64_t n, std::mt19937& random)
      : type(t), count(n), data(new std::byte[static_cast<size_t>(BytesOf(t, n))]()) {
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (int64_t i = 0; i < n; ++i) Put(data.get(), t, i, IsQuantized(t) ? 8 * uniform(random) : uniform(random));
  }
  double At(int64_t i) const { return LoadElement(data.get(), type, i); }
};

// Elements of a tensor, or nothing where it is too large to try.
int64_t CountOf(std::initializer_list<int64_t> extents) {
  int64_t count = 1;
  for (const int64_t extent : extents) {
    if (extent < 0 || extent > kMostElements) return -1;
    count *= extent;
    if (count > kMostElements) return -1;
  }
  return count;
}

DType FloatType(Bytes& in) {
  return static_cast<DType>(in.Rarely() ? in.Below(10) : in.Of({0, 1, 2, 0}));  // f32, f16, bf16 foremost
}

// For a cache: codes as well.
DType CacheType(Bytes& in) { return in.Below(3) == 0 ? static_cast<DType>(7 + in.Below(3)) : FloatType(in); }

// Scales for a cache of quantized type; rarely where there should be none.
Quant Scales(Bytes& in, DType type, Buffer& scales) {
  if (IsQuantized(type) == in.Rarely()) return {};
  for (int64_t i = 0; i < scales.count; ++i)
    Put(scales.data.get(), DType::kF32, i, 0.05 + 0.1 * std::fabs(scales.At(i)));
  return {reinterpret_cast<const float*>(scales.data.get()), in.Below(2) == 1};
}

double Tolerance(DType type) { return type == DType::kF32 ? 1e-4 : type == DType::kF64 ? 1e-9 : 2e-2; }

// Scores are sums of any size.
double ScoreTolerance(DType type, const Buffer& scores) {
  double most = 1;
  for (int64_t i = 0; i < scores.count; ++i)
    if (std::isfinite(scores.At(i))) most = std::max(most, std::fabs(scores.At(i)));
  return most * Tolerance(type);
}

[[noreturn]] void Fail(const char* what, int64_t at, double want, double got) {
  std::fprintf(stderr, "%s: element %ld: oracle %g, kernel %g\n", what, static_cast<long>(at), want, got);
  std::abort();
}

void Compare(const char* what, const Buffer& want, const Buffer& got, double tolerance) {
  for (int64_t i = 0; i < want.count; ++i) {
    const double a = want.At(i);
    const double b = got.At(i);
    if (a != b && !(std::fabs(a - b) <= tolerance)) Fail(what, i, a, b);
  }
}

// Whether the kernels have computed a call that was checked. Only f64 may be refused: it is the oracle's.
bool Served(const Status& done, DType type) {
  if (done.ok()) return true;
  if (type == DType::kF64 && done.code() == StatusCode::kRefused) return false;
  std::fprintf(stderr, "%s\n", done.message().c_str());
  std::abort();
}

HeadsView View(const Buffer& b, bool bsnh, int64_t batch, int64_t heads, int64_t tokens, int64_t d) {
  return bsnh ? HeadsView::Bsnh(b.data.get(), b.type, batch, tokens, heads, d)
              : HeadsView::Bnsh(b.data.get(), b.type, batch, heads, tokens, d);
}

MutableHeadsView MutableView(Buffer& b, int64_t batch, int64_t heads, int64_t tokens, int64_t d) {
  return MutableHeadsView::Bsnh(b.data.get(), b.type, batch, tokens, heads, d);
}

// NaN in the rows [begin, tokens) of sequence b.
void Poison(Buffer& buffer, const HeadsView& view, int64_t b, int64_t begin) {
  for (int64_t h = 0; h < view.heads; ++h)
    for (int64_t t = begin; t < view.tokens; ++t)
      for (int64_t d = 0; d < view.head_size; ++d)
        StoreElement(buffer.data.get(), view.type, view.Offset(b, h, t) + d, std::numeric_limits<double>::quiet_NaN());
}

RotaryView Rotary(Bytes& in, Buffer& cos, Buffer& sin, int64_t rows, int64_t half) {
  return {cos.data.get(), sin.data.get(), cos.type, rows, half, in.Below(2) == 1};
}

// Mostly nothing, else a row of the table that serves `type`: small calls would never see the wide ones.
const TileKernelRow* ForcedKernel(Bytes& in, DType type) {
  const TileKernelRow& row = TileKernels()[in.Byte() % TileKernels().size()];
  if (row.type != type || in.Below(2) == 0) {
    ForceTileKernelForTest("");
    return nullptr;
  }
  ForceTileKernelForTest(row.name);
  return &row;
}

// An AttentionCall of odd extents, and the memory behind it. Draw's order is that of the bytes in found/attention.
struct AttentionTry {
  explicit AttentionTry(Bytes& bytes) : in(bytes), random(bytes.Byte()) {}

  // False where a tensor would be too large to try.
  bool Draw() {
    if (!DrawTensors()) return false;
    DrawSpec();
    DrawPositions();
    DrawKeyMask();
    if (!DrawMask()) return false;
    DrawRotary();
    return DrawScores();
  }
  void CheckOddExtents();
  void Run();

  bool DrawTensors();
  void DrawSpec();
  void DrawPositions();
  void DrawKeyMask();
  bool DrawMask();
  void DrawRotary();
  bool DrawScores();
  void PoisonUnread();

  Buffer New(DType of, int64_t count) { return {of, count, random}; }

  Bytes& in;
  std::mt19937 random;
  int64_t B = 0, Hkv = 0, Hq = 0, S = 0, T = 0, D = 0, Dv = 0;
  DType type = DType::kF32, kv_type = DType::kF32;
  AttentionCall call;
  Buffer query, key, value, key_scale, value_scale, want, got, norm, sink, key_mask, mask, cos, sin;
  Buffer want_scores, scores;
  std::vector<int64_t> length, position, query_length, column, rotary_position, score_column;
  int64_t half = 0;
  int64_t score_columns = 0;
};

bool AttentionTry::DrawTensors() {
  B = in.Of({1, 1, 2, 3, 0});
  Hkv = in.Of({1, 2, 3});
  Hq = Hkv * in.Of({1, 2, 3, 8, 0});
  Hq += in.Rarely() ? 1 : 0;
  S = in.Of({1, 1, 2, 5, 33, 0});
  T = in.Of({1, 17, 63, 64, 65, 130, 600, 0});
  D = in.Of({8, 4, 1, 2, 7, 16, 33, 64, 80, 0});
  Dv = in.Of({D, D, 5, 16});
  type = FloatType(in);
  kv_type = in.Below(2) == 0 ? type : CacheType(in);
  for (const int64_t count :
       {CountOf({B, S, Hq, D}), CountOf({B, S, Hq, Dv}), CountOf({B, T, Hkv, D}), CountOf({B, T, Hkv, Dv})})
    if (count < 0) return false;
  query = New(type, B * S * Hq * D);
  key = New(kv_type, B * T * Hkv * RowElements(kv_type, D));
  value = New(kv_type, B * T * Hkv * RowElements(kv_type, Dv));
  key_scale = New(DType::kF32, Hkv * D);
  value_scale = New(DType::kF32, Hkv * Dv);
  want = New(type, B * S * Hq * Dv);
  got = New(type, B * S * Hq * Dv);
  const bool bsnh = in.Below(2) == 1;
  call.query = View(query, true, B, Hq, S, D);
  call.key = View(key, bsnh, B, Hkv, T, D);
  call.value = View(value, bsnh, B, Hkv, T, Dv);
  call.key.quant = Scales(in, kv_type, key_scale);
  call.value.quant = Scales(in, kv_type, value_scale);
  call.output = MutableView(got, B, Hq, S, Dv);
  return true;
}

void AttentionTry::DrawSpec() {
  norm = New(FloatType(in), D);
  if (in.Below(4) == 0) call.norm = {norm.data.get(), norm.type, in.Rarely() ? 0.0F : 1e-5F};
  AttentionSpec& spec = call.spec;
  spec.scale = in.Rarely() ? std::numeric_limits<float>::infinity() : 0.1F * static_cast<float>(in.Below(20));
  spec.softcap = in.Rarely() ? -1.0F : static_cast<float>(in.Of({0, 0, 1, 30}));
  spec.window_left = in.Odd(in.Of({kUnlimited, kUnlimited, 0, 1, 5, 63, 64, 500}));
  spec.window_right = in.Odd(in.Of({kUnlimited, 0, 0, 0, 1, 9}));
  spec.smooth_softmax = in.Below(4) == 0;
  sink = New(FloatType(in), Hq);
  if (in.Below(4) != 0) return;
  spec.head_sink = sink.data.get();
  spec.head_sink_type = sink.type;
}

void AttentionTry::DrawPositions() {
  for (int64_t b = 0; b < B; ++b) {
    query_length.push_back(in.Odd(in.Below(S + 1)));
    column.push_back(in.Odd(in.Of({0, 0, 1, 5})));
    length.push_back(in.Odd(T == 0 ? 0 : in.Byte() % (T + 1)));
    position.push_back(in.Odd(in.Of({T - S, T - S, 0, -3, 7, T + 4})));
  }
  if (in.Below(4) != 0) call.positions.length = length.data();
  if (in.Below(4) != 0) call.positions.query_position = position.data();
  if (in.Below(4) == 0) call.positions.query_length = query_length.data();
}

void AttentionTry::DrawKeyMask() {
  key_mask = New(static_cast<DType>(in.Of({6, 5, 4, 6, 0})), B * T);
  for (int64_t i = 0; i < B * T; ++i) Put(key_mask.data.get(), key_mask.type, i, random() % 4 != 0 ? 1 : 0);
  if (in.Below(4) == 0) call.key_mask = {key_mask.data.get(), key_mask.type, T};
}

bool AttentionTry::DrawMask() {
  const int64_t heads = in.Of({1, Hq});
  const int64_t columns = in.Of({T, T, T / 2});
  if (CountOf({B, heads, S, columns}) < 0) return false;
  const DType mask_type = in.Below(2) == 0 ? DType::kBool : FloatType(in);
  mask = New(mask_type, B * heads * S * columns);
  if (mask_type == DType::kBool)
    for (int64_t i = 0; i < mask.count; ++i) Put(mask.data.get(), mask_type, i, random() % 3 != 0 ? 1 : 0);
  if (in.Below(3) == 0)
    call.mask = {.data = mask.data.get(),
                 .type = mask_type,
                 .batch_stride = heads * S * columns,
                 .head_stride = heads > 1 ? S * columns : 0,
                 .query_stride = columns,
                 .key_stride = 1,
                 .keys = in.Rarely() ? -1 : columns};
  if (in.Below(4) == 0) call.positions.first_column = column.data();
  return true;
}

void AttentionTry::DrawRotary() {
  half = in.Of({D / 2, 1, D / 4});
  const int64_t rows = in.Of({T + S, T + S, 3});
  cos = New(FloatType(in), rows * half);
  sin = New(cos.type, rows * half);
  if (in.Below(3) == 0) call.rotary = Rotary(in, cos, sin, rows, half);
  rotary_position.resize(static_cast<size_t>(B * S));
  for (int64_t& p : rotary_position) p = in.Odd(static_cast<int64_t>(random() % static_cast<uint64_t>(rows)));
  if (in.Below(2) == 0) call.rotary_positions = rotary_position.data();
}

bool AttentionTry::DrawScores() {
  score_columns = T + in.Of({0, 0, 5});
  if (CountOf({B, Hq, S, score_columns}) < 0) return false;
  const DType score_type = FloatType(in);
  want_scores = New(score_type, B * Hq * S * score_columns);
  scores = New(score_type, want_scores.count);
  score_column.resize(static_cast<size_t>(B));
  for (int64_t& c : score_column) c = in.Odd(in.Of({0, 0, 5}));
  if (in.Below(3) != 0) return true;
  call.scores = {scores.data.get(), score_type, static_cast<ScoreStage>(in.Below(4)), score_columns};
  if (in.Below(2) == 0) call.scores.outside = 0;
  if (in.Below(2) == 0) call.positions.first_column = score_column.data();
  std::memcpy(want_scores.data.get(), scores.data.get(), static_cast<size_t>(BytesOf(score_type, scores.count)));
  return true;
}

// Extents no memory is behind: only the check may see them.
void AttentionTry::CheckOddExtents() {
  AttentionCall odd = call;
  odd.scores.keys = in.Odd(score_columns);
  odd.rotary.half = in.Odd(half);
  odd.key.tokens = in.Odd(T);
  odd.value.tokens = in.Odd(odd.key.tokens);
  odd.query.batch = in.Odd(B);
  odd.key.heads = in.Odd(Hkv);
  odd.output.head_size = in.Odd(Dv);
  (void)CheckAttention(odd, "odd");
}

// NaN past the lengths, of a call that was checked.
void AttentionTry::PoisonUnread() {
  const bool holds_nan = kv_type != DType::kI8 && kv_type != DType::kI4;
  if (!holds_nan || call.key_mask || !call.positions.length) return;
  for (int64_t b = 0; b < B; ++b) {
    if (!call.scores || !call.scores.OfEveryKey()) Poison(key, call.key, b, length[static_cast<size_t>(b)]);
    Poison(value, call.value, b, length[static_cast<size_t>(b)]);
  }
}

void AttentionTry::Run() {
  if (!CheckAttention(call, "fuzz").ok()) return;
  PoisonUnread();
  const TileKernelRow* forced = ForcedKernel(in, kv_type);
  WorkspacePool pool;
  if (!Served(Attend(call, ParallelFor::Serial(), pool), type)) return;
  call.output = MutableView(want, B, Hq, S, Dv);
  if (call.scores) call.scores.data = want_scores.data.get();
  AttendOracle(call);
  // Dot products round queries to 16 bits; the scores here may be so large that this moves weights from key to key.
  if (forced != nullptr && forced->products == Products::kDots) return;
  Compare("attention", want, got, Tolerance(type));
  if (call.scores) Compare("scores", want_scores, scores, ScoreTolerance(scores.type, want_scores));
}

void TryAttention(Bytes& in) {
  AttentionTry attempt(in);
  if (!attempt.Draw()) return;
  attempt.CheckOddExtents();
  attempt.Run();
}

// Rows of `row` elements, `D` of which are codes: the rest is the nibble that pads int4. The kernels round from f32,
// the oracle from double, so a tie may fall either way.
void CompareCodes(const Buffer& want, const Buffer& got, int64_t row, int64_t D) {
  for (int64_t i = 0; i < want.count; ++i) {
    if (i % row >= D) continue;
    const double a = want.At(i);
    const double b = got.At(i);
    const double step = want.type == DType::kF8E4M3 ? std::max(std::fabs(a) / 8, 0.01) : 1;
    if (std::isnan(a) != std::isnan(b) || std::fabs(a - b) > step * 1.01) Fail("append of codes", i, a, b);
  }
}

// As AttentionTry's, of an append.
void CheckOddExtents(Bytes& in, AppendCall odd) {
  odd.rotary_positions = nullptr;  // as many as S, whatever the extents claim
  odd.present.tokens = in.Odd(odd.present.tokens);
  odd.rotary.half = in.Odd(odd.rotary.half);
  odd.fresh.tokens = in.Odd(odd.fresh.tokens);
  odd.fresh.batch = in.Odd(odd.fresh.batch);
  (void)CheckAppend(odd, "odd");
}

void TryAppend(Bytes& in) {
  std::mt19937 random(in.Byte());
  const int64_t B = in.Of({1, 2, 3, 0});
  const int64_t H = in.Of({1, 2});
  const int64_t S = in.Of({1, 1, 2, 5, 0});
  const int64_t D = in.Of({8, 1, 7, 16, 33});
  const int64_t past_rows = in.Of({0, 1, 16, 100});
  const int64_t capacity = past_rows + in.Of({S, S, 0, S + 3});
  const DType type = CacheType(in);
  const int64_t row = RowElements(type, D);
  if (CountOf({B, H, past_rows, row}) < 0 || CountOf({B, H, capacity, row}) < 0) return;
  Buffer past(type, B * H * past_rows * row, random);
  Buffer fresh(in.Rarely() || IsQuantized(type) ? FloatType(in) : type, B * S * H * D, random);
  Buffer want(type, B * H * capacity * row, random), got(type, B * H * capacity * row, random);
  Buffer scales(DType::kF32, H * D, random), norm(FloatType(in), D, random);
  const Quant quant = Scales(in, type, scales);
  const int64_t half = D / 2;
  const int64_t rows = in.Of({capacity + S, capacity + S, 2});
  Buffer cos(FloatType(in), rows * half, random), sin(cos.type, rows * half, random);

  AppendCall call;
  if (in.Below(4) != 0) call.past = View(past, false, B, H, past_rows, D);
  call.past.quant = quant;
  if (in.Below(4) == 0) call.norm = {norm.data.get(), norm.type, 1e-5F};
  call.fresh = View(fresh, in.Below(2) == 0, B, H, S, D);
  std::vector<int64_t> past_length(B), length(B), skip(B), rotary_position(B * S);
  for (int64_t b = 0; b < B; ++b) {
    skip[b] = in.Odd(in.Of({0, 0, 1, 3}));
    past_length[b] = in.Odd(in.Byte() % (past_rows + 1));
    length[b] = in.Odd(past_length[b] < 0 || past_length[b] > past_rows ? 0 : past_length[b] + in.Below(S + 1));
  }
  if (in.Below(4) != 0) call.past_length = past_length.data();
  if (in.Below(2) != 0) call.length = length.data();
  if (in.Below(4) == 0) call.skip = skip.data();
  if (in.Below(2) == 0) call.rotary = Rotary(in, cos, sin, rows, half);
  for (int64_t& p : rotary_position) p = in.Odd(rows == 0 ? 0 : random() % rows);
  if (in.Below(3) == 0) call.rotary_positions = rotary_position.data();
  // In place, past and present are one buffer with the same rows.
  const bool in_place = in.Below(4) == 0;
  std::memcpy(want.data.get(), got.data.get(), static_cast<size_t>(BytesOf(type, got.count)));
  const auto with = [&](Buffer& present) {
    AppendCall c = call;
    c.present = MutableHeadsView::Bnsh(present.data.get(), type, B, H, capacity, D);
    c.present.quant = quant;
    if (in_place) c.past = Const(c.present);
    return c;
  };
  CheckOddExtents(in, with(got));
  if (!CheckAppend(with(got), "fuzz").ok()) return;
  WorkspacePool pool;
  if (!Served(Append(with(got), ParallelFor::Serial(), pool), type)) return;
  AppendOracle(with(want));
  if (IsQuantized(type)) return CompareCodes(want, got, row, D);
  Compare("append", want, got, Tolerance(type));
}

}  // namespace
}  // namespace kvshare

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  kvshare::Bytes in(data, size);
  if (in.Below(3) == 0) {
    kvshare::TryAppend(in);
  } else {
    kvshare::TryAttention(in);
  }
  return 0;
}
