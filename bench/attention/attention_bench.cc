// The attention core alone, without ONNX Runtime: the shapes of bench/RESULTS.md, K/V cold (a rotation of more than the
// last-level cache), one thread. Rates: GB/s of visible K and V, GFLOP/s of visible work.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "core/half.h"
#include "kvshare/attend.h"

namespace kvshare {
namespace {

struct Shape {
  const char* name;
  int64_t Hq, Hkv, D, window;
};
constexpr Shape kShapes[] = {
    {"e2b_sliding", 8, 1, 256, 512}, {"e2b_full", 8, 1, 512, 0}, {"llama", 32, 8, 128, 0}, {"mha", 16, 16, 64, 0}};

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<void, Free>;

constexpr float kScale = 1.0F / 254;  // of int8 codes

Memory Filled(int64_t count, DType type) {
  Memory memory(std::aligned_alloc(64, (count * SizeOf(type) + 63) / 64 * 64));
  uint32_t state = 12345;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525 + 1013904223;
    const double value = static_cast<double>(state >> 8) / (1 << 24) - 0.5;
    StoreElement(memory.get(), type, i, type == DType::kI8 ? value / kScale : value);
  }
  return memory;
}

void Run(benchmark::State& state, const Shape& shape, DType type, int64_t S, int64_t T) {
  const int64_t kv_count = shape.Hkv * T * shape.D;
  const int64_t set_bytes = 2 * kv_count * static_cast<int64_t>(SizeOf(type));
  const int64_t sets = S > 1 ? 1 : std::max<int64_t>(1, (256 << 20) / set_bytes);
  std::vector<Memory> keys, values;
  for (int64_t i = 0; i < sets; ++i) {
    keys.push_back(Filled(kv_count, type));
    values.push_back(Filled(kv_count, type));
  }
  const DType activations = type == DType::kI8 ? DType::kF32 : type;
  const Memory query = Filled(S * shape.Hq * shape.D, activations);
  const Memory output = Filled(S * shape.Hq * shape.D, activations);
  const int64_t position = T - S;
  WorkspacePool pool;
  int64_t turn = 0;
  for (auto _ : state) {
    AttentionCall call;
    call.query = HeadsView::Bsnh(query.get(), activations, 1, S, shape.Hq, shape.D);
    call.key = HeadsView::Bnsh(keys[turn % sets].get(), type, 1, shape.Hkv, T, shape.D);
    call.value = HeadsView::Bnsh(values[turn % sets].get(), type, 1, shape.Hkv, T, shape.D);
    call.output = MutableHeadsView::Bsnh(output.get(), activations, 1, S, shape.Hq, shape.D);
    if (type == DType::kI8) call.key.quant = call.value.quant = {&kScale, false};
    call.spec.scale = 0.0625F;
    call.spec.window_left = shape.window > 0 ? shape.window - 1 : kUnlimited;
    call.spec.window_right = 0;
    call.positions.query_position = &position;
    if (const Status status = Attend(call, ParallelFor::Serial(), pool); !status.ok())
      state.SkipWithError(status.message().c_str());
    ++turn;
  }
  int64_t pairs = 0;
  for (int64_t s = 0; s < S; ++s) {
    const int64_t visible = T - S + s + 1;
    pairs += shape.window > 0 ? std::min(visible, shape.window) : visible;
  }
  const double visible_bytes =
      2.0 * shape.Hkv * (shape.window > 0 ? std::min(T, shape.window + S - 1) : T) * shape.D * SizeOf(type);
  using benchmark::Counter;
  state.counters["GB/s"] = Counter(visible_bytes * 1e-9, Counter::kIsIterationInvariantRate);
  state.counters["GFLOP/s"] = Counter(4e-9 * pairs * shape.D * shape.Hq, Counter::kIsIterationInvariantRate);
}

void RegisterAll() {
  for (const Shape& shape : kShapes)
    for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8}) {
      for (const auto& [S, T] :
           {std::pair<int64_t, int64_t>{1, 512}, {1, 4096}, {1, 32768}, {512, 512}, {2048, 2048}, {256, 4096}})
        benchmark::RegisterBenchmark(
            (std::string(shape.name) + "/" + NameOf(type) + "/S" + std::to_string(S) + "/T" + std::to_string(T))
                .c_str(),
            [=](benchmark::State& state) { Run(state, shape, type, S, T); })
            ->Unit(benchmark::kMicrosecond)
            ->UseRealTime();
    }
}

}  // namespace
}  // namespace kvshare

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  kvshare::RegisterAll();
  benchmark::RunSpecifiedBenchmarks();
}
