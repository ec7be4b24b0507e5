// One decode step of a shared layer: the query is its own, keys and values are another layer's cache, read in place.
#include <kvshare/attend.h>

#include <cmath>
#include <cstdio>
#include <vector>

int main() {
  constexpr int64_t kHeads = 4, kKvHeads = 1, kTokens = 8, kHeadSize = 32;
  std::vector<float> query(kHeads * kHeadSize, 0.5F), key(kKvHeads * kTokens * kHeadSize, 0.25F);
  std::vector<float> value(key.size(), 3.0F), output(query.size());

  kvshare::AttentionCall call;
  call.query = kvshare::HeadsView::Bnsh(query.data(), kvshare::DType::kF32, 1, kHeads, 1, kHeadSize);
  call.key = kvshare::HeadsView::Bnsh(key.data(), kvshare::DType::kF32, 1, kKvHeads, kTokens, kHeadSize);
  call.value = kvshare::HeadsView::Bnsh(value.data(), kvshare::DType::kF32, 1, kKvHeads, kTokens, kHeadSize);
  call.output = kvshare::MutableHeadsView::Bnsh(output.data(), kvshare::DType::kF32, 1, kHeads, 1, kHeadSize);

  if (kvshare::Status status = kvshare::CheckAttention(call, "share_kv"); !status.ok()) {
    std::fprintf(stderr, "%s\n", status.message().c_str());
    return 1;
  }
  kvshare::WorkspacePool pool;
  if (kvshare::Status status = kvshare::Attend(call, kvshare::ParallelFor::Serial(), pool); !status.ok()) return 1;
  for (float x : output) {
    if (std::fabs(x - 3.0F) > 1e-5F) return 1;  // a mean of equal values is that value
  }
  std::printf("%s: %g\n", kvshare::SimdTarget(), output[0]);
}
