// Attention on the device that runtime.h offers: gpu_check cases | bench ROWS FILE.jsonl [MIB] | once ROWS. No test
// library: `make gpu-check` builds it where only compilers are.
//
//   cases  against the oracle; twice on one scratch memory; in a captured graph whose lengths change
//   bench  a measured copy of MIB (1024) first, then the rows of the file ROWS (bench/gpu/rows.txt), eager and as
//          graphs
//   once   one layer of each row, for a profiler
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "core/half.h"
#include "cuda/attend_cuda.h"
#include "cuda/runtime.h"
#include "kvshare/oracle.h"

namespace kvshare::cuda {
namespace {

struct Case {
  std::string name;
  DType type = DType::kF16;
  int64_t B, Hq, Hkv, S, T, D, window;
  float softcap;
  DType cache = type;
  bool per_channel = false;  // scales of codes
  bool key_mask = false;     // says the lengths as padding on the left
};
const Case kCases[] = {
    {"full decode", DType::kF16, 1, 8, 1, 1, 700, 512, 0, 0},
    {"sliding decode", DType::kF16, 1, 8, 1, 1, 700, 256, 512, 0},
    {"bf16 decode", DType::kBF16, 2, 8, 2, 1, 333, 512, 0, 30},
    {"group of 4", DType::kF16, 2, 32, 8, 1, 300, 128, 0, 0},
    {"head size 96", DType::kBF16, 1, 4, 2, 2, 127, 96, 0, 0},
    {"head size 64", DType::kF16, 3, 16, 2, 1, 65, 64, 5, 0},
    {"chunk", DType::kF16, 1, 8, 1, 3, 200, 256, 64, 0},
    {"prefill, D 64", DType::kF16, 1, 8, 2, 40, 100, 64, 0, 0},
    {"prefill, D 128", DType::kBF16, 2, 8, 2, 33, 90, 96, 17, 20},
    {"prefill, D 256", DType::kF16, 1, 8, 1, 64, 200, 256, 63, 0},
    {"prefill, D 512", DType::kF16, 1, 8, 1, 50, 64, 512, 0, 0},
    {"16 rows, D 512", DType::kF16, 1, 8, 1, 2, 300, 512, 0, 0},
    {"f32", DType::kF32, 2, 4, 2, 2, 77, 80, 0, 0},
    {"f32, D 512", DType::kF32, 1, 8, 1, 1, 300, 512, 0, 0},
    {"f32, a prompt", DType::kF32, 1, 8, 1, 20, 90, 256, 33, 0},
    {"f32, D 54", DType::kF32, 1, 4, 2, 2, 60, 54, 0, 0},
    {"int8, D 512", DType::kF16, 1, 8, 1, 1, 700, 512, 0, 0, DType::kI8},
    {"int8, channels", DType::kBF16, 2, 8, 2, 1, 300, 256, 100, 0, DType::kI8, true},
    {"int4", DType::kF16, 1, 8, 1, 1, 300, 512, 0, 0, DType::kI4, true},
    {"fp8", DType::kF16, 1, 8, 1, 1, 300, 256, 0, 0, DType::kF8E4M3},
    {"fp8, 16 rows of D 512", DType::kBF16, 1, 8, 1, 2, 300, 512, 0, 0, DType::kF8E4M3, true},
    {"f32 over fp16", DType::kF32, 1, 8, 1, 1, 300, 512, 0, 0, DType::kF16},
    {"f32 over int8, channels", DType::kF32, 1, 8, 1, 1, 300, 256, 0, 0, DType::kI8, true},
    {"key mask", DType::kF16, 2, 8, 1, 1, 700, 512, 0, 0, DType::kF16, false, true},
    {"key mask, window, prompt", DType::kBF16, 2, 8, 1, 40, 300, 256, 33, 0, DType::kBF16, false, true},
};
[[noreturn]] void Die(const Status& status) {
  std::fprintf(stderr, "gpu_check: %s\n", status.message().c_str());
  std::exit(1);
}
void Check(const Status& status) {
  if (!status.ok()) Die(status);
}
template <typename T>
T Must(Result<T> result) {
  if (!result.ok()) Die(result.status());
  return *std::move(result);
}

// Tensors on the host and on the device.
class Tensors {
 public:
  // With so many copies of K and V.
  explicit Tensors(const Case& c, int caches = 1) : c_(c), caches_(static_cast<size_t>(caches)) {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal(0, 1);
    constexpr int64_t kDrawn = 1 << 20;  // of each tensor; a larger one repeats them
    const int64_t counts[] = {c.B * c.Hq * c.S * c.D, c.B * c.Hkv * c.T * c.D, c.B * c.Hkv * c.T * c.D,
                              c.B * c.Hq * c.S * c.D};
    const float spread = c.cache == DType::kI8 ? 50.0F : c.cache == DType::kI4 ? 4.0F : 1.0F;  // codes fill their range
    for (int i = 0; i < 4; ++i) {
      const bool cache = i == 1 || i == 2;
      const DType type = cache ? c.cache : c.type;
      host_[i].resize(static_cast<size_t>(BytesOf(type, counts[i])));
      const int64_t drawn = i < 3 ? std::min(counts[i], kDrawn) : 0;
      for (int64_t j = 0; j < drawn; ++j)
        StoreElement(host_[i].data(), type, j, normal(generator) * (cache ? spread : 1.0F));
      const auto period = static_cast<size_t>(BytesOf(type, drawn));
      for (size_t at = period; period > 0 && at < host_[i].size(); at += period)
        std::memcpy(host_[i].data() + at, host_[i].data(), std::min(period, host_[i].size() - at));
      if (cache)
        for (Cache& other : caches_) other[i - 1] = OnDevice(host_[i].data(), host_[i].size());
      else
        device_[i] = OnDevice(host_[i].data(), host_[i].size());
    }
    std::uniform_real_distribution<float> scales(0.5F, 1);
    scales_.resize(static_cast<size_t>(c.Hkv * c.D));
    for (float& scale : scales_) scale = scales(generator) / spread;
    device_scales_ = OnDevice(scales_.data(), scales_.size() * sizeof(float));
    lengths_ = Must(Allocate(2 * static_cast<size_t>(c.B) * sizeof(int64_t)));
    kept_.resize(static_cast<size_t>(c.B * c.T));
    device_kept_ = Must(Allocate(kept_.size() * sizeof(int32_t)));
    SetLengths(std::vector<int64_t>(static_cast<size_t>(c.B), c.T));
  }
  ~Tensors() {
    for (void* block : {device_[0], device_[3]}) Check(Free(block));
    for (const Cache& cache : caches_)
      for (void* block : cache) Check(Free(block));
    Check(Free(lengths_));
    Check(Free(device_kept_));
    Check(Free(device_scales_));
  }
  Tensors(const Tensors&) = delete;
  Tensors& operator=(const Tensors&) = delete;

  void SetLengths(const std::vector<int64_t>& lengths) {
    length_ = lengths;
    position_ = lengths;
    for (int64_t& position : position_) position -= c_.S;
    const size_t bytes = lengths.size() * sizeof(int64_t);
    Check(Upload(lengths_, length_.data(), bytes));
    Check(Upload(static_cast<char*>(lengths_) + bytes, position_.data(), bytes));
    for (int64_t i = 0; i < c_.B * c_.T; ++i) kept_[i] = i % c_.T >= c_.T - lengths[i / c_.T] ? 1 : 0;
    Check(Upload(device_kept_, kept_.data(), kept_.size() * sizeof(int32_t)));
  }
  AttentionCall Call(void* const (&data)[4], const void* scales, const void* kept) const {
    AttentionCall call;
    call.query = HeadsView::Bsnh(data[0], c_.type, c_.B, c_.S, c_.Hq, c_.D);
    call.key = HeadsView::Bnsh(data[1], c_.cache, c_.B, c_.Hkv, c_.T, c_.D);
    call.value = HeadsView::Bnsh(data[2], c_.cache, c_.B, c_.Hkv, c_.T, c_.D);
    if (IsQuantized(c_.cache)) call.key.quant = call.value.quant = {static_cast<const float*>(scales), c_.per_channel};
    call.output = MutableHeadsView::Bsnh(data[3], c_.type, c_.B, c_.S, c_.Hq, c_.D);
    call.spec.scale = 1 / std::sqrt(static_cast<double>(c_.D));
    call.spec.softcap = c_.softcap;
    call.spec.window_left = c_.window > 0 ? c_.window - 1 : kUnlimited;
    call.spec.window_right = 0;
    if (c_.key_mask) call.key_mask = {kept, DType::kI32, c_.T};
    return call;
  }
  // Over copy `cache` of K and V.
  AttendPlan Plan(size_t cache = 0) const {
    DevicePositions positions;
    positions.length = {lengths_, true, 0, 0, c_.T};
    positions.query_position = {static_cast<const int64_t*>(lengths_) + c_.B, true, 0, -c_.S, c_.T};
    positions.query_length = DeviceNumbers::Same(c_.S);
    void* const data[4] = {device_[0], caches_[cache][0], caches_[cache][1], device_[3]};
    return Must(PlanAttend(Call(data, device_scales_, device_kept_), positions, Must(CurrentDevice()), "gpu_check"));
  }
  // The largest difference from the oracle over the largest magnitude.
  double Error() {
    std::vector<std::byte> truth(host_[3].size());
    void* const data[4] = {host_[0].data(), host_[1].data(), host_[2].data(), truth.data()};
    AttentionCall call = Call(data, scales_.data(), kept_.data());
    call.positions.length = length_.data();
    call.positions.query_position = position_.data();
    AttendOracle(call);
    Check(Download(host_[3].data(), device_[3], host_[3].size()));
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < c_.B * c_.Hq * c_.S * c_.D; ++i) {
      const double want = LoadElement(truth.data(), c_.type, i);
      const double off = std::fabs(want - LoadElement(host_[3].data(), c_.type, i));
      worst = off <= worst ? worst : off;  // a NaN stays
      largest = std::max(largest, std::fabs(want));
    }
    return worst / largest;
  }

 private:
  using Cache = std::array<void*, 2>;  // K and V

  static void* OnDevice(const void* host, size_t bytes) {
    void* const device = Must(Allocate(bytes));
    Check(Upload(device, host, bytes));
    return device;
  }

  const Case& c_;
  std::vector<std::byte> host_[4];
  void* device_[4] = {};  // query and output; K and V are caches
  std::vector<Cache> caches_;
  std::vector<float> scales_;  // [Hkv, D]
  void* device_scales_ = nullptr;
  void* lengths_ = nullptr;  // [2, B]: lengths, then positions
  std::vector<int64_t> length_, position_;
  std::vector<int32_t> kept_;  // [B, T], of a key mask
  void* device_kept_ = nullptr;
};

double Tolerance(DType type) { return type == DType::kBF16 ? 1.6e-2 : type == DType::kF16 ? 2e-3 : 1e-5; }

int Cases() {
  int wrong = 0;
  void* const stream = Must(CreateStream());
  for (const Case& c : kCases) {
    Tensors tensors(c);
    const AttendPlan plan = tensors.Plan();
    void* const scratch = Must(Allocate(std::max<size_t>(plan.scratch_bytes, 1)));
    double error = 0;
    const auto worse = [&](double other) { error = other <= error ? error : other; };
    for (int time = 0; time < 2; ++time) {
      Check(AttendCuda(plan, stream, scratch));
      Check(Synchronize(stream));
      worse(tensors.Error());
    }
    Check(BeginCapture(stream));
    Check(AttendCuda(plan, stream, scratch));
    const std::unique_ptr<Graph> graph = Must(EndCapture(stream));
    for (const int64_t cut : {int64_t{0}, c.T / 3, c.T - c.S}) {
      std::vector<int64_t> lengths(static_cast<size_t>(c.B), c.T);
      lengths[0] -= cut;
      tensors.SetLengths(lengths);
      Check(graph->Replay(stream));
      Check(Synchronize(stream));
      worse(tensors.Error());
    }
    Check(Free(scratch));
    const bool ok = error <= Tolerance(c.type);
    wrong += ok ? 0 : 1;
    std::printf("%-6s %-16s %-4s %-24s splits %3d  error %.1e\n", ok ? "ok" : "WRONG", c.name.c_str(), NameOf(c.type),
                plan.kernel->name, plan.splits, error);
  }
  Check(DestroyStream(stream));
  std::printf("%d of %zu cases are wrong\n", wrong, std::size(kCases));
  return wrong == 0 ? 0 : 1;
}

// Milliseconds of one `run`, the median of seven bursts.
template <typename Body>
double Milliseconds(void* stream, const Body& run) {
  constexpr int kBursts = 7, kRuns = 20;
  run();
  Check(Synchronize(stream));
  std::vector<double> times;
  for (int burst = 0; burst < kBursts; ++burst) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < kRuns; ++i) run();
    Check(Synchronize(stream));
    times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count() /
                    kRuns);
  }
  std::sort(times.begin(), times.end());
  return times[kBursts / 2];
}

// A row of the file: as many calls, one after another, as there are layers. They take turns with the caches.
struct Row {
  int layers = 0;
  int caches = 0;
  Case c;
};

DType TypeNamed(const std::string& name) {
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8, DType::kI4, DType::kF8E4M3})
    if (name == NameOf(type)) return type;
  Die(Status::InvalidInput("no type '" + name + "'"));
}

// "layers caches B Hq Hkv S T D window element cache name" a line; # opens a comment.
std::vector<Row> RowsOf(const char* path) {
  std::ifstream file(path);
  if (!file) Die(Status::InvalidInput(std::string("'") + path + "' is not readable"));
  std::vector<Row> rows;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream words(line);
    Row row;
    std::string element, cache;
    words >> row.layers >> row.caches >> row.c.B >> row.c.Hq >> row.c.Hkv >> row.c.S >> row.c.T >> row.c.D >>
        row.c.window >> element >> cache >> std::ws;
    if (!std::getline(words, row.c.name) || row.caches < 1)
      Die(Status::InvalidInput(std::string(path) + ": not a row: " + line));
    row.c.type = TypeNamed(element);
    row.c.cache = TypeNamed(cache);
    rows.push_back(row);
  }
  return rows;
}

// TB/s, read and written.
double CopyRate(void* stream, size_t bytes) {
  void* const from = Must(Allocate(bytes));
  void* const to = Must(Allocate(bytes));
  const double copy = Milliseconds(stream, [&] { Check(CopyOnDevice(to, from, bytes, stream)); });
  Check(Free(from));
  Check(Free(to));
  return 2 * static_cast<double>(bytes) / copy / 1e9;
}

void BenchRow(const Row& row, void* stream, std::FILE* results) {
  Tensors tensors(row.c, row.caches);
  std::vector<AttendPlan> plans;
  for (int cache = 0; cache < row.caches; ++cache) plans.push_back(tensors.Plan(static_cast<size_t>(cache)));
  const AttendPlan& plan = plans[0];
  void* const scratch = Must(Allocate(std::max<size_t>(plan.scratch_bytes, 1)));
  const auto layers = [&] {
    for (int layer = 0; layer < row.layers; ++layer)
      Check(AttendCuda(plans[static_cast<size_t>(layer % row.caches)], stream, scratch));
  };
  const double eager = Milliseconds(stream, layers);
  Check(BeginCapture(stream));
  layers();
  const std::unique_ptr<Graph> graph = Must(EndCapture(stream));
  const double replayed = Milliseconds(stream, [&] { Check(graph->Replay(stream)); });
  Check(Free(scratch));
  std::printf("%-40s %-22s splits %3d  %9.4f ms  graph %9.4f ms\n", row.c.name.c_str(), plan.kernel->name, plan.splits,
              eager, replayed);
  const std::pair<const char*, double> sides[] = {{"kvshare kernels", eager}, {"kvshare kernels, graph", replayed}};
  for (const auto& [side, ms] : sides)
    std::fprintf(results, "{\"row\": \"%s\", \"side\": \"%s\", \"ms\": %.5f, \"kernel\": \"%s\", \"splits\": %d}\n",
                 row.c.name.c_str(), side, ms, plan.kernel->name, plan.splits);
  std::fflush(results);
}

int Bench(const char* rows_path, const char* path, size_t copied) {
  const std::vector<Row> rows = RowsOf(rows_path);
  std::FILE* const results = std::fopen(path, "w");
  if (results == nullptr) Die(Status::InvalidInput(std::string("'") + path + "' is not writable"));
  void* const stream = Must(CreateStream());
  const double rate = CopyRate(stream, copied);
  std::printf("a copy of %zu MiB: %.2f TB/s\n", copied >> 20, rate);
  std::fprintf(results, "{\"copy_tb_per_s\": %.4f}\n", rate);
  for (const Row& row : rows) BenchRow(row, stream, results);
  std::fclose(results);
  Check(DestroyStream(stream));
  return 0;
}

int Once(const char* rows_path) {
  void* const stream = Must(CreateStream());
  for (const Row& row : RowsOf(rows_path)) {
    Tensors tensors(row.c);
    const AttendPlan plan = tensors.Plan();
    void* const scratch = Must(Allocate(std::max<size_t>(plan.scratch_bytes, 1)));
    Check(AttendCuda(plan, stream, scratch));
    Check(Synchronize(stream));
    Check(Free(scratch));
    std::printf("%-40s %-22s splits %3d\n", row.c.name.c_str(), plan.kernel->name, plan.splits);
  }
  Check(DestroyStream(stream));
  return 0;
}

}  // namespace
}  // namespace kvshare::cuda

int main(int count, char** arguments) {
  const std::string what = count > 1 ? arguments[1] : "";
  const bool bench = what == "bench" && count >= 4, once = what == "once" && count >= 3;
  if (what != "cases" && !bench && !once) {
    std::fprintf(stderr, "usage: gpu_check cases | bench ROWS FILE.jsonl [MIB] | once ROWS\n");
    return 64;
  }
  kvshare::cuda::Check(kvshare::cuda::PrepareKernels());
  if (once) return kvshare::cuda::Once(arguments[2]);
  if (!bench) return kvshare::cuda::Cases();
  const size_t mib = count > 4 ? std::stoul(arguments[4]) : 1024;
  return kvshare::cuda::Bench(arguments[2], arguments[3], mib << 20);
}
