#include "ep/alias.h"

#include <fmt/format.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "ep/graph_view.h"
#include "ort/ort_context.h"

namespace kvshare::ep {
namespace {

using ort::Tensor;

struct Alias final : OrtKernelImpl {
  Alias(const OrtApi& of, std::string_view its_op, std::shared_ptr<const Handshake> session_handshake)
      : OrtKernelImpl{}, api(of), op(its_op), handshake(std::move(session_handshake)) {
    ort_version_supported = kApiVersion;
    Compute = [](OrtKernelImpl* self, OrtKernelContext* context) noexcept -> OrtStatus* {
      auto& alias = *static_cast<Alias*>(self);
      return ort::Guarded(alias.api, [&] { return alias.Run(context); });
    };
    Release = [](OrtKernelImpl* self) noexcept { delete static_cast<Alias*>(self); };
  }

  Status Run(OrtKernelContext* context) {
    KVSHARE_RETURN_IF_ERROR(checked([&] { return handshake->CheckReaders(); }));
    const ort::CallContext call(api, context);
    KVSHARE_ASSIGN_OR_RETURN(const Tensor input, call.Input(0));
    KVSHARE_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, ShapeOf(input));
    KVSHARE_ASSIGN_OR_RETURN(const Tensor output, call.Output(0, shape));
    size_t bytes = 0;
    KVSHARE_RETURN_IF_ERROR(ort::FromOrt(api, api.GetTensorSizeInBytes(input.value, &bytes)));
    // One memory, unless ONNX Runtime could not give the output its input's.
    if (bytes > 0 && output.data != input.data) std::memcpy(output.data, input.data, bytes);
    return {};
  }

  Result<std::vector<int64_t>> ShapeOf(const Tensor& input) const {
    const auto& in = input.dims;
    if (input.rank == 4 && op == "Transpose") return std::vector<int64_t>{in[0], in[2], in[1], in[3]};
    if (input.rank == 4 && op == "Reshape") return std::vector<int64_t>{in[0], in[1], in[2] * in[3]};
    if (input.rank == 4 && op == "Unsqueeze") return std::vector<int64_t>{in[0], in[1], 1, in[2], in[3]};
    if (input.rank == 5 && op == "Expand") return std::vector<int64_t>(in.begin(), in.begin() + 5);
    if (input.rank == 5 && op == "Reshape") return std::vector<int64_t>{in[0], in[1], in[3], in[4]};
    return Status::InvalidInput(fmt::format("a cache that {} takes has shape {}; needs rank {}", op, input.ShapeText(),
                                            op == "Expand" ? 5 : 4));
  }

  const OrtApi& api;
  std::string op;
  std::shared_ptr<const Handshake> handshake;
  CheckedOnce checked;
};

}  // namespace

OrtKernelImpl* MakeAlias(const OrtApi& api, std::string_view op, std::shared_ptr<const Handshake> handshake) {
  return new Alias(api, op, std::move(handshake));
}

}  // namespace kvshare::ep
