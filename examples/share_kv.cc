// Two layers, one cache: layer 0 owns K/V and appends its new token, layer 1 borrows the same memory. No ONNX Runtime.
//
//   share_kv    checks both layers against the double-precision oracle; exits with 1 where they differ
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "kvshare/attend.h"
#include "kvshare/oracle.h"

namespace {

using kvshare::DType;
using kvshare::HeadsView;
using kvshare::MutableHeadsView;

constexpr int64_t kQueryHeads = 8;
constexpr int64_t kKvHeads = 1;
constexpr int64_t kHeadSize = 256;
constexpr int64_t kCapacity = 1024;  // rows of the cache
constexpr int64_t kPast = 600;       // rows already there
constexpr int64_t kWindow = 512;     // keys a query sees, its own included

std::vector<float> Wave(int64_t count, double step) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(static_cast<float>(std::sin(step * static_cast<double>(i))));
  return values;
}

struct Cache {
  std::vector<float> key = Wave(kKvHeads * kCapacity * kHeadSize, 0.37);
  std::vector<float> value = Wave(kKvHeads * kCapacity * kHeadSize, 0.53);
};

HeadsView CacheView(const std::vector<float>& rows) {
  return HeadsView::Bnsh(rows.data(), DType::kF32, 1, kKvHeads, kCapacity, kHeadSize);
}

// The owner's step: one new row goes to position kPast of `rows`, in place.
kvshare::Status AppendRow(std::vector<float>& rows, const std::vector<float>& row) {
  const int64_t past = kPast;
  const int64_t length = kPast + 1;
  kvshare::AppendCall call;
  call.past = CacheView(rows);
  call.fresh = HeadsView::Bnsh(row.data(), DType::kF32, 1, kKvHeads, 1, kHeadSize);
  call.present = MutableHeadsView::Bnsh(rows.data(), DType::kF32, 1, kKvHeads, kCapacity, kHeadSize);
  call.past_length = &past;
  call.length = &length;
  KVSHARE_RETURN_IF_ERROR(kvshare::CheckAppend(call, "share_kv: layer 0"));
  kvshare::WorkspacePool pool;
  return kvshare::Append(call, kvshare::ParallelFor::Serial(), pool);
}

// One decode step of any layer against `cache`; the largest distance from the oracle.
kvshare::Result<double> Step(const char* layer, const std::vector<float>& query, const Cache& cache) {
  const int64_t length = kPast + 1;
  const int64_t position = kPast;
  std::vector<float> output(kQueryHeads * kHeadSize);
  std::vector<float> expected(output.size());
  kvshare::AttentionCall call;
  call.query = HeadsView::Bnsh(query.data(), DType::kF32, 1, kQueryHeads, 1, kHeadSize);
  call.key = CacheView(cache.key);  // a view: the cache is read where it lies
  call.value = CacheView(cache.value);
  call.output = MutableHeadsView::Bnsh(output.data(), DType::kF32, 1, kQueryHeads, 1, kHeadSize);
  call.spec.scale = 1.0F / std::sqrt(static_cast<float>(kHeadSize));
  call.spec.window_left = kWindow - 1;
  call.spec.window_right = 0;
  call.positions = {.length = &length, .query_position = &position};
  KVSHARE_RETURN_IF_ERROR(kvshare::CheckAttention(call, layer));
  static kvshare::WorkspacePool pool;
  KVSHARE_RETURN_IF_ERROR(kvshare::Attend(call, kvshare::ParallelFor::Serial(), pool));

  call.output.data = expected.data();
  kvshare::AttendOracle(call);
  double largest = 0;
  for (size_t i = 0; i < output.size(); ++i) {
    largest = std::fmax(largest, std::fabs(static_cast<double>(output[i]) - static_cast<double>(expected[i])));
  }
  return largest;
}

kvshare::Result<double> Run() {
  Cache cache;
  KVSHARE_RETURN_IF_ERROR(AppendRow(cache.key, Wave(kHeadSize, 0.71)));
  KVSHARE_RETURN_IF_ERROR(AppendRow(cache.value, Wave(kHeadSize, 0.83)));
  KVSHARE_ASSIGN_OR_RETURN(const double own,
                           Step("share_kv: layer 0, owner", Wave(kQueryHeads * kHeadSize, 0.11), cache));
  KVSHARE_ASSIGN_OR_RETURN(const double shared,
                           Step("share_kv: layer 1, borrower", Wave(kQueryHeads * kHeadSize, 0.29), cache));
  return std::fmax(own, shared);
}

}  // namespace

int main() {
  const auto difference = Run();
  if (!difference.ok()) {
    std::fprintf(stderr, "%s\n", difference.status().message().c_str());
    return 1;
  }
  std::printf("two layers, one cache, %s: within %.1e of double precision\n", kvshare::SimdTarget(), *difference);
  return *difference < 1e-5 ? 0 : 1;
}
