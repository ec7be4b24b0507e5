// Decode of the attention core alone, one thread, cold K and V, beside a plain read of the same bytes.
//
//   decode_bench [--rows REGEX] [--seconds S] [--sweep] SIDE.so...
//
// --sweep adds each side once more, after an untimed read of 64 MB of other memory: as weights stream through the
// caches between two layers. SIDE.so is build/lib/libdecode_side.so of any build; the first one is the base of the last
// column. The plain read and the sides take turns call by call, and every one of them visits every buffer. A call with
// an involuntary context switch is left out. A line a row: of each side the median in microseconds, times the plain
// read, times the first side; of a swept one times the same side unswept.
#include <dlfcn.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <regex>
#include <string>
#include <vector>

#include "core/half.h"
#include "decode/side.h"
#include "roof/read.h"

namespace {

using kvshare::DType;
using kvshare::HeadsView;

struct Shape {
  const char* name;
  int64_t Hq, Hkv, D, T, window;  // window 0: none
};
constexpr Shape kShapes[] = {
    {"e2b_sliding", 8, 1, 256, 512, 512}, {"e2b_sliding", 8, 1, 256, 32768, 512},
    {"e2b_full", 8, 1, 512, 512, 0},      {"e2b_full", 8, 1, 512, 4096, 0},
    {"e2b_full", 8, 1, 512, 32768, 0},    {"llama", 32, 8, 128, 512, 0},
    {"llama", 32, 8, 128, 4096, 0},       {"llama", 32, 8, 128, 32768, 0},
    {"mha", 16, 16, 64, 512, 0},          {"mha", 16, 16, 64, 4096, 0},
    {"group1", 8, 8, 128, 4096, 0},       {"group2", 16, 8, 128, 4096, 0},
    {"group16", 128, 8, 128, 4096, 0},    {"d80", 8, 2, 80, 4096, 0},
    {"d96", 32, 8, 96, 4096, 0},
};
constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kI8, DType::kI4, DType::kF8E4M3};

constexpr size_t kPage = 4096;
constexpr size_t kGap = 33 * kPage;                  // between two tensors, so that they do not share sets of a cache
constexpr size_t kRotation = size_t{1} << 30;        // bytes; beyond any share of a last-level cache
constexpr size_t kLeastRotation = size_t{64} << 20;  // of rows in which only a window is visible
constexpr size_t kSweep = size_t{64} << 20;          // bytes read between two calls
constexpr float kScale = 0.01F;                      // of quantized caches

// K and V of many calls, one after the other in one block.
class Rotation {
 public:
  Rotation(const Shape& shape, DType type, size_t sides)
      : tensor_(static_cast<size_t>(kvshare::BytesOf(type, shape.Hkv * shape.T * kvshare::RowElements(type, shape.D)))),
        step_((tensor_ + kPage - 1) / kPage * kPage + kGap) {
    const int64_t visible = shape.window > 0 ? std::min(shape.window, shape.T) : shape.T;
    const size_t seen = 2 * tensor_ * static_cast<size_t>(visible) / static_cast<size_t>(shape.T);
    count_ = std::max(kLeastRotation / seen, std::min(kRotation / seen, 4 * kRotation / (2 * step_)));
    while (std::gcd(count_, sides) != 1) ++count_;  // so that a turn of the sides ends on another buffer every time
    block_.reset(std::aligned_alloc(kPage, 2 * count_ * step_));
    Fill(type);
  }
  size_t count() const { return count_; }
  const char* Key(size_t i) const { return static_cast<const char*>(block_.get()) + 2 * i * step_; }
  const char* Value(size_t i) const { return Key(i) + step_; }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };

  // Small numbers of either sign; the same pattern everywhere, as its values cost no time.
  void Fill(DType type) {
    std::vector<char> pattern(kvshare::IsQuantized(type) ? 65537 : 65536);
    std::mt19937 random(1);
    if (kvshare::IsQuantized(type)) {
      for (char& c : pattern) c = static_cast<char>(random() & 0x77);  // no NaN of fp8
    } else {
      const auto count = static_cast<int64_t>(pattern.size() / kvshare::SizeOf(type));
      for (int64_t i = 0; i < count; ++i)
        kvshare::StoreElement(pattern.data(), type, i, static_cast<double>(random() % 2001) / 1000 - 1);
    }
    char* const bytes = static_cast<char*>(block_.get());
    const size_t all = 2 * count_ * step_;
    for (size_t at = 0; at < all; at += pattern.size())
      std::memcpy(bytes + at, pattern.data(), std::min(pattern.size(), all - at));
  }

  size_t tensor_, step_, count_ = 0;
  std::unique_ptr<void, Free> block_;
};

// What takes turns with the plain read.
struct Side {
  decltype(&kvshare_decode_side) attend;
  size_t base;  // the side that it is compared with
  bool swept;
};

double Median(std::vector<double>& times) {
  if (times.empty()) return std::nan("");
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

long Switches() {
  rusage usage{};
  getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_nivcsw;
}

struct Row {
  const Shape& shape;
  DType type;
  std::vector<Side> sides;
  double seconds;
  const std::vector<float>& other;  // memory that a swept side finds read

  std::string Name() const {
    return std::string(shape.name) + "/" + kvshare::NameOf(type) + "/T" + std::to_string(shape.T);
  }

  kvshare::AttentionCall Call(const Rotation& rotation, size_t i, const void* query, void* output) const {
    const DType activations = kvshare::IsQuantized(type) ? DType::kF32 : type;
    kvshare::AttentionCall call;
    call.query = HeadsView::Bnsh(query, activations, 1, shape.Hq, 1, shape.D);
    call.key = HeadsView::Bnsh(rotation.Key(i), type, 1, shape.Hkv, shape.T, shape.D);
    call.value = HeadsView::Bnsh(rotation.Value(i), type, 1, shape.Hkv, shape.T, shape.D);
    call.output = kvshare::MutableHeadsView::Bnsh(output, activations, 1, shape.Hq, 1, shape.D);
    if (kvshare::IsQuantized(type)) call.key.quant = call.value.quant = {&kScale, false};
    call.spec.scale = 1 / std::sqrt(static_cast<double>(shape.D));
    if (shape.window > 0) call.spec.window_left = shape.window - 1;
    call.spec.window_right = 0;
    call.positions.query_position = &last_;
    return call;
  }

  // What `call` reads of K and V.
  float ReadPlain(const kvshare::AttentionCall& call) const {
    float sum = 0;
    const int64_t first = shape.window > 0 ? std::max<int64_t>(0, shape.T - shape.window) : 0;
    for (const HeadsView* view : {&call.key, &call.value})
      for (int64_t head = 0; head < shape.Hkv; ++head)
        sum += kvshare::roof::Sum(
            static_cast<const float*>(kvshare::At(view->data, type, view->Offset(0, head, first))),
            static_cast<size_t>(kvshare::BytesOf(type, (shape.T - first) * view->token_stride)) / sizeof(float),
            /*prefetch=*/false);
    return sum;
  }

  void Measure() const {
    const Rotation rotation(shape, type, sides.size() + 1);
    std::vector<char> query(static_cast<size_t>(shape.Hq * shape.D) * sizeof(float)), output(query.size());
    const int64_t count = shape.Hq * shape.D;
    for (int64_t i = 0; i < count; ++i)
      kvshare::StoreElement(query.data(), kvshare::IsQuantized(type) ? DType::kF32 : type, i,
                            std::sin(static_cast<double>(i)));
    std::vector<std::vector<double>> times(sides.size() + 1);
    [[maybe_unused]] volatile float kept = 0;  // what is read must be used
    const auto begin = std::chrono::steady_clock::now();
    const auto elapsed = [&] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    };
    for (size_t turn = 0; elapsed() < seconds || turn < 4 * times.size(); ++turn) {
      const size_t side = turn % times.size();
      const kvshare::AttentionCall call = Call(rotation, turn % rotation.count(), query.data(), output.data());
      if (side > 0 && sides[side - 1].swept) kept = kvshare::roof::Sum(other.data(), other.size(), /*prefetch=*/false);
      const long switches = Switches();
      const auto start = std::chrono::steady_clock::now();
      const char* failure = nullptr;
      if (side == 0)
        kept = ReadPlain(call);
      else
        failure = sides[side - 1].attend(&call);
      const double time = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
      if (failure != nullptr) {
        std::printf("%-28s side %zu: %s\n", Name().c_str(), side, failure);
        return;
      }
      if (Switches() == switches && turn >= times.size()) times[side].push_back(time);
    }
    Print(times);
  }

  void Print(std::vector<std::vector<double>>& times) const {
    const double read = Median(times[0]);
    std::printf("%-28s read %9.1f us", Name().c_str(), read);
    for (size_t i = 0; i < sides.size(); ++i) {
      const double time = Median(times[i + 1]);
      const double base = Median(times[sides[i].base + 1]);
      std::printf("   | %9.1f us %5.2f x read %5.2f x %s (%zu)", time, time / read, time / base,
                  sides[i].swept ? "unswept" : "first", times[i + 1].size());
    }
    std::printf("\n");
    std::fflush(stdout);
  }

  int64_t last_ = shape.T - 1;
};

}  // namespace

int main(int argc, char** argv) {
  std::regex rows(".");
  double seconds = 2;
  bool sweep = false;
  std::vector<Side> sides;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--rows" && i + 1 < argc) {
      rows = std::regex(argv[++i]);
    } else if (argument == "--seconds" && i + 1 < argc) {
      seconds = std::atof(argv[++i]);
    } else if (argument == "--sweep") {
      sweep = true;
    } else {
      void* const library = dlopen(argument.c_str(), RTLD_NOW | RTLD_LOCAL);
      void* const side = library != nullptr ? dlsym(library, "kvshare_decode_side") : nullptr;
      if (side == nullptr) {
        std::fprintf(stderr, "decode_bench: %s\n", dlerror());
        return 1;
      }
      sides.push_back({reinterpret_cast<decltype(&kvshare_decode_side)>(side), 0, false});
    }
  }
  if (sides.empty()) {
    std::fputs("usage: decode_bench [--rows REGEX] [--seconds S] [--sweep] SIDE.so...\n", stderr);
    return 1;
  }
  const std::vector<float> other(sweep ? kSweep / sizeof(float) : 0, 1);
  if (sweep)
    for (size_t i = 0, unswept = sides.size(); i < unswept; ++i) sides.push_back({sides[i].attend, i, true});
  for (const Shape& shape : kShapes)
    for (const DType type : kTypes)
      if (const Row row{shape, type, sides, seconds, other}; std::regex_search(row.Name(), rows)) row.Measure();
}
