// A Problem on the device: uploaded, run, downloaded, over whatever runtime.h is linked.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "cuda/attend_cuda.h"
#include "cuda/runtime.h"
#include "tests/support/problem.h"

namespace kvshare::cuda::testing {

using kvshare::testing::Array;
using kvshare::testing::ExpectClose;
using kvshare::testing::Problem;

template <typename T>
T Must(Result<T> result) {
  EXPECT_TRUE(result.ok()) << result.status().message();
  return *std::move(result);
}

// Copies of host memory; freed with it.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  ~DeviceMemory() {
    for (void* block : blocks_) EXPECT_TRUE(Free(block).ok());
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  void* Copy(const void* host, size_t bytes) {
    if (host == nullptr) return nullptr;
    blocks_.push_back(Must(Allocate(bytes)));
    EXPECT_TRUE(Upload(blocks_.back(), host, bytes).ok());
    return blocks_.back();
  }
  void* Copy(const Array& array) { return array.size() > 0 ? Copy(array.data(), array.bytes.size()) : nullptr; }
  const float* Copy(const std::vector<float>& host) {
    return host.empty() ? nullptr : static_cast<const float*>(Copy(host.data(), host.size() * sizeof(float)));
  }
  DeviceNumbers Numbers(const std::vector<int64_t>& host, int64_t otherwise, int64_t least, int64_t most) {
    if (host.empty()) return DeviceNumbers::Same(otherwise);
    return {Copy(host.data(), host.size() * sizeof(int64_t)), true, 0, least, most};
  }
  void* New(size_t bytes) {
    blocks_.push_back(Must(Allocate(bytes)));
    return blocks_.back();
  }

 private:
  std::vector<void*> blocks_;
};

// `p`'s call with its tensors on the device.
struct DeviceProblem {
  DeviceMemory memory;
  AttentionCall call;
  DevicePositions positions;
  Array output;  // on the host

  explicit DeviceProblem(Problem& p) {
    call = p.Call(output);
    call.query.data = memory.Copy(p.query);
    call.key.data = memory.Copy(p.key);
    call.value.data = memory.Copy(p.value);
    call.key.quant.scale = memory.Copy(p.key_scale);
    call.value.quant.scale = memory.Copy(p.value_scale);
    call.output.data = memory.Copy(output);
    call.spec.head_sink = memory.Copy(p.sinks);
    call.mask.data = memory.Copy(p.mask);
    call.key_mask.data = memory.Copy(p.key_mask);
    call.norm.weight = memory.Copy(p.norm);
    call.rotary.cos = memory.Copy(p.cos);
    call.rotary.sin = memory.Copy(p.sin);
    call.scores.data = p.show_scores ? memory.Copy(p.scores) : nullptr;
    call.positions = {};
    call.key_rows_read = nullptr;
    positions.length = memory.Numbers(p.length, p.T, 0, p.T);
    positions.query_position = memory.Numbers(p.query_position, 0, -(int64_t{1} << 31), int64_t{1} << 31);
    positions.query_length = memory.Numbers(p.query_length, p.S, 0, p.S);
  }
  AttendPlan Plan() const { return Must(PlanAttend(call, positions, Must(CurrentDevice()), "test")); }
  void Run() {
    const AttendPlan plan = Plan();
    void* const scratch = memory.New(plan.scratch_bytes);
    const Status status = AttendCuda(plan, nullptr, scratch);
    ASSERT_TRUE(status.ok()) << status.message();
    ASSERT_TRUE(Synchronize(nullptr).ok());
  }
  void Get(Problem& p) {
    ASSERT_TRUE(Download(output.data(), call.output.data, output.bytes.size()).ok());
    if (!p.show_scores) return;
    ASSERT_TRUE(Download(p.scores.data(), call.scores.data, p.scores.bytes.size()).ok());
  }
};

// The kernel of the call's plan, by name and by result.
inline void ExpectDeviceMatchesOracle(Problem& p, double tolerance) {
  Array truth;
  const AttentionCall want = p.Call(truth);
  const Status checked = CheckAttention(want, "test");
  ASSERT_TRUE(checked.ok()) << checked.message();
  AttendOracle(want);
  const Array want_scores = p.scores;
  DeviceProblem device(p);
  device.Run();
  device.Get(p);
  SCOPED_TRACE(::testing::Message() << "kernel " << device.Plan().kernel->name << ", splits " << device.Plan().splits);
  ExpectClose(truth, device.output, p.Dv, tolerance);
  ExpectClose(want_scores, p.scores, p.T, tolerance, p.stage == ScoreStage::kWeights ? 0 : 1, "score");
}

}  // namespace kvshare::cuda::testing
