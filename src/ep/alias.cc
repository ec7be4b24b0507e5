#include "ep/alias.h"

#include <fmt/format.h>

#include <array>
#include <cstring>

#include "ep/graph_view.h"
#include "ort/ort_context.h"

namespace kvshare::ep {
namespace {

using ort::Tensor;

struct Alias final : OrtKernelImpl {
  Alias(const OrtApi& of, bool is_transpose) : OrtKernelImpl{}, api(of), transposes(is_transpose) {
    ort_version_supported = kApiVersion;
    Compute = [](OrtKernelImpl* self, OrtKernelContext* context) noexcept -> OrtStatus* {
      const auto& alias = *static_cast<const Alias*>(self);
      return ort::Guarded(alias.api, [&] { return alias.Run(context); });
    };
    Release = [](OrtKernelImpl* self) noexcept { delete static_cast<Alias*>(self); };
  }

  Status Run(OrtKernelContext* context) const {
    const ort::CallContext call(api, context);
    KVSHARE_ASSIGN_OR_RETURN(const Tensor input, call.Input(0));
    if (input.rank != 4)
      return Status::InvalidInput(fmt::format("a borrowed cache has shape {}; needs rank 4", input.ShapeText()));
    const auto& in = input.dims;
    const std::array<int64_t, 4> transposed = {in[0], in[2], in[1], in[3]};
    const std::array<int64_t, 3> folded = {in[0], in[1], in[2] * in[3]};
    KVSHARE_ASSIGN_OR_RETURN(const Tensor output,
                             call.Output(0, transposes ? std::span<const int64_t>(transposed) : folded));
    size_t bytes = 0;
    KVSHARE_RETURN_IF_ERROR(ort::FromOrt(api, api.GetTensorSizeInBytes(input.value, &bytes)));
    // One memory, unless ONNX Runtime could not give the output its input's.
    if (bytes > 0 && output.data != input.data) std::memcpy(output.data, input.data, bytes);
    return {};
  }

  const OrtApi& api;
  bool transposes;
};

}  // namespace

OrtKernelImpl* MakeAlias(const OrtApi& api, std::string_view op) { return new Alias(api, op == "Transpose"); }

}  // namespace kvshare::ep
