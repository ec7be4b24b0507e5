#include "ep/kernels.h"

#include <fmt/format.h>

#include <utility>

#include "ep/graph_view.h"
#include "ort/op_types.h"
#include "ort/ort_context.h"

namespace kvshare::ep {
namespace {

// A call of a node that has a plan.
class PlannedCall final : public ort::CallContext {
 public:
  PlannedCall(const OrtApi& api, OrtKernelContext* context, const Plan& plan)
      : ort::CallContext(api, context), plan_(plan) {}

  // A present that nobody reads is absent: neither allocated nor written.
  Result<ort::Tensor> Output(size_t index, std::span<const int64_t> dims) const override {
    if (plan_.hides_presents && (index == 1 || index == 2)) return ort::Tensor{};
    return ort::CallContext::Output(index, dims);
  }

 private:
  const Plan& plan_;
};

struct PlannedKernel final : OrtKernelImpl {
  PlannedKernel(const OrtApi& host, std::unique_ptr<ort::Kernel> made, const Plan& of)
      : OrtKernelImpl{}, api(host), kernel(std::move(made)), plan(of) {
    ort_version_supported = kApiVersion;
    Compute = [](OrtKernelImpl* self, OrtKernelContext* context) noexcept -> OrtStatus* {
      const auto& planned = *static_cast<PlannedKernel*>(self);
      return ort::Guarded(planned.api, [&]() -> Status {
        PlannedCall call(planned.api, context, planned.plan);
        return planned.kernel->Run(call);
      });
    };
    Release = [](OrtKernelImpl* self) noexcept { delete static_cast<PlannedKernel*>(self); };
  }

  const OrtApi& api;  // of the ONNX Runtime that made the kernel
  std::unique_ptr<ort::Kernel> kernel;
  Plan plan;
};

}  // namespace

Result<std::unique_ptr<ort::Kernel>> CreateKernel(std::string_view domain, std::string_view op,
                                                  const ort::NodeInfo& node, const Plan& plan, ort::HostVersion host) {
  const ort::OpRow* row = ort::FindOp(domain, op);
  if (row == nullptr) return Status::Internal(fmt::format("{} '{}': no such op", op, node.Name()));
  ort::SessionConfig config;
  config.host = host;
  config.lower_right = plan.lower_right;
  KVSHARE_ASSIGN_OR_RETURN(const ort::OpBinding binding, ort::BindTypes(*row, node, config));
  return row->create(binding, node);
}

OrtKernelImpl* WrapKernel(const OrtApi& api, std::unique_ptr<ort::Kernel> kernel, const Plan& plan) {
  return new PlannedKernel(api, std::move(kernel), plan);
}

}  // namespace kvshare::ep
