#include "ep/kernels.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "core/ops.h"
#include "ep/graph_view.h"
#include "ort/backends.h"
#include "ort/op_types.h"
#include "ort/ort_context.h"

namespace kvshare::ep {
namespace {

using ort::Tensor;

using enum attention::Input;

// A node whose mask is a key mask: what kvshare's Attention would have in its place.
class PlannedNode final : public ort::NodeInfo {
 public:
  PlannedNode(const ort::NodeInfo& node, const Plan& plan) : node_(node), plan_(plan) {}

  std::string Name() const override { return node_.Name(); }
  std::optional<int64_t> Int(const char* attribute) const override {
    const std::string_view name = attribute;
    if (KnowsMask() && name == "is_causal") return 1;
    if (KnowsMask() && name == "local_window_size") return plan_.window;
    if (plan_.kv_heads > 0 && name == "kv_num_heads" && node_.Int(attribute)) return plan_.kv_heads;
    return node_.Int(attribute);
  }
  std::optional<float> Float(const char* attribute) const override { return node_.Float(attribute); }
  std::optional<std::string> String(const char* attribute) const override { return node_.String(attribute); }
  size_t InputCount() const override { return NumbersKeptKeys() ? kInputs : node_.InputCount(); }
  size_t OutputCount() const override { return node_.OutputCount(); }
  bool HasInput(size_t index) const override {
    if (plan_.drops_mask && index == kMask) return false;
    if (!NumbersKeptKeys()) return node_.HasInput(index);
    return index == kKeyMask || (index != kMask && node_.HasInput(index));
  }
  bool HasOutput(size_t index) const override { return node_.HasOutput(index); }
  ONNXTensorElementDataType InputType(size_t index) const override {
    if (HasKeyMask() && index == (plan_.columns ? kMask : kKeyMask)) return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    return HasInput(index) ? node_.InputType(index) : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  }

 private:
  bool HasKeyMask() const { return !plan_.key_mask.empty(); }
  bool KnowsMask() const { return HasKeyMask() || plan_.drops_mask; }
  // Positions are those among the keys that the mask keeps, as kvshare's Attention reads its input key_mask.
  bool NumbersKeptKeys() const { return HasKeyMask() && !plan_.columns; }

  const ort::NodeInfo& node_;
  const Plan& plan_;
};

// A call of a node that has a plan.
class PlannedCall final : public ort::CallContext {
 public:
  PlannedCall(const OrtApi& api, OrtKernelContext* context, const Plan& plan)
      : ort::CallContext(api, context), plan_(plan) {}

  Result<Tensor> Input(size_t index) const override {
    if (plan_.drops_mask && index == kMask) return Tensor{};
    if (!plan_.key_mask.empty() && index == kMask) return plan_.columns ? Padding() : Tensor{};
    if (!plan_.key_mask.empty() && index == kKeyMask) return KeyMask();
    if (!plan_.unfolded[0].empty() && (index == kK || index == kV)) return Unfolded(index);
    return ort::CallContext::Input(index);
  }

  // A present that nobody reads is absent: neither allocated nor written.
  Result<Tensor> Output(size_t index, std::span<const int64_t> dims) const override {
    if (plan_.hides_presents && (index == attention::kPresentKey || index == attention::kPresentValue)) return Tensor{};
    return ort::CallContext::Output(index, dims);
  }

 private:
  // [B, T] bytes at the start of a mask's buffer, whose first and last extents are B and T.
  Result<Tensor> KeyMask() const {
    KVSHARE_ASSIGN_OR_RETURN(Tensor mask, ort::CallContext::Input(kMask));
    mask.type = ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    mask.dims = {mask.dims[0], mask.dims[mask.rank - 1]};
    mask.rank = 2;
    KVSHARE_ASSIGN_OR_RETURN(const Tensor query, ort::CallContext::Input(kQ));
    if (mask.dims[0] != 1 || query.dims[0] <= 1) return mask;
    // One row for all sequences, as the mask that it stands for broadcasts.
    mask.data = Rows(static_cast<const uint8_t*>(mask.data), query.dims[0], mask.dims[1], /*stride=*/0);
    mask.dims[0] = query.dims[0];
    return mask;
  }

  // The first T of its columns, as a mask [B, 1, 1, T].
  Result<Tensor> Padding() const {
    KVSHARE_ASSIGN_OR_RETURN(Tensor mask, ort::CallContext::Input(kMask));
    KVSHARE_ASSIGN_OR_RETURN(const int64_t keys, Keys());
    const int64_t batch = mask.dims[0];
    const int64_t columns = mask.dims[mask.rank - 1];
    if (columns < keys)
      return Status::InvalidInput(
          fmt::format("the mask of keys has {} columns; needs one for each of {} keys", columns, keys));
    if (keys < columns) mask.data = Rows(static_cast<const uint8_t*>(mask.data), batch, keys, columns);
    mask.type = ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    mask.dims = {batch, 1, 1, keys};
    mask.rank = 4;
    return mask;
  }

  // T: of the past and of the new ones.
  Result<int64_t> Keys() const {
    KVSHARE_ASSIGN_OR_RETURN(const Tensor key, Input(kK));
    KVSHARE_ASSIGN_OR_RETURN(const Tensor past, ort::CallContext::Input(kPastK));
    return key.dims[key.rank == 3 ? 1 : 2] + (past ? past.dims[2] : 0);
  }

  // `count` rows of `width` bytes, each `stride` after the one before it. The same memory at each call of one step.
  uint8_t* Rows(const uint8_t* first, int64_t count, int64_t width, int64_t stride) const {
    rows_.resize(static_cast<size_t>(count * width));
    for (int64_t row = 0; row < count; ++row) std::copy_n(first + row * stride, width, rows_.begin() + row * width);
    return rows_.data();
  }

  // [B, T, H * D] by its shape, [B, H, T, D] in memory.
  Result<Tensor> Unfolded(size_t index) const {
    KVSHARE_ASSIGN_OR_RETURN(Tensor cache, ort::CallContext::Input(index));
    cache.dims = {cache.dims[0], plan_.kv_heads, cache.dims[1], cache.dims[2] / plan_.kv_heads};
    cache.rank = 4;
    return cache;
  }

  const Plan& plan_;
  mutable std::vector<uint8_t> rows_;
};

struct PlannedKernel final : OrtKernelImpl {
  PlannedKernel(const OrtApi& of, std::unique_ptr<ort::Kernel> made_kernel, const Plan& its_plan,
                std::shared_ptr<const Handshake> session_handshake)
      : OrtKernelImpl{},
        api(of),
        kernel(std::move(made_kernel)),
        plan(its_plan),
        handshake(std::move(session_handshake)) {
    ort_version_supported = kApiVersion;
    Compute = [](OrtKernelImpl* self, OrtKernelContext* context) noexcept -> OrtStatus* {
      auto& planned = *static_cast<PlannedKernel*>(self);
      return ort::Guarded(planned.api, [&] { return planned.Run(context); });
    };
    Release = [](OrtKernelImpl* self) noexcept { delete static_cast<PlannedKernel*>(self); };
  }

  Status Run(OrtKernelContext* context) {
    KVSHARE_RETURN_IF_ERROR(checked([&] { return handshake->CheckMade(plan); }));
    PlannedCall call(api, context, plan);
    return kernel->Run(call);
  }

  const OrtApi& api;
  std::unique_ptr<ort::Kernel> kernel;
  Plan plan;
  std::shared_ptr<const Handshake> handshake;
  CheckedOnce checked;
};

}  // namespace

Result<std::unique_ptr<ort::Kernel>> CreateKernel(std::string_view domain, std::string_view op,
                                                  const ort::NodeInfo& node, const Plan& plan, ort::HostVersion host) {
  const ort::OpRow* row = ort::FindOp(domain, op);
  if (row == nullptr) return Status::Internal(fmt::format("{} '{}': no such op", op, node.Name()));
  ort::SessionConfig config;
  config.host = host;
  config.lower_right = plan.lower_right;
  const PlannedNode planned(node, plan);
  KVSHARE_ASSIGN_OR_RETURN(const ort::OpBinding binding,
                           ort::BindTypes(*row, planned, config, *ort::Backends().front()));
  return row->create(binding, planned);
}

OrtKernelImpl* WrapKernel(const OrtApi& api, std::unique_ptr<ort::Kernel> kernel, const Plan& plan,
                          std::shared_ptr<const Handshake> handshake) {
  return new PlannedKernel(api, std::move(kernel), plan, std::move(handshake));
}

}  // namespace kvshare::ep
