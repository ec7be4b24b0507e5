#include "ep/mask_group.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "ep/graph_view.h"
#include "ort/ort_context.h"

namespace kvshare::ep {
namespace {

using ort::Tensor;

template <typename T>
void KeepNonZero(const Tensor& source, uint8_t* kept) {
  const auto* const elements = static_cast<const T*>(source.data);
  std::transform(elements, elements + source.Count(), kept, [](T element) { return element != T{} ? 1 : 0; });
}

Status WriteKeyMask(const Tensor& source, void* mask) {
  auto* const kept = static_cast<uint8_t*>(mask);
  if (source.Count() == 0) return {};
  switch (source.type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: KeepNonZero<int64_t>(source, kept); return {};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32: KeepNonZero<int32_t>(source, kept); return {};
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL: KeepNonZero<uint8_t>(source, kept); return {};
    default: return Status::Internal(fmt::format("a mask group reads a mask of {}", ort::NameOf(source.type)));
  }
}

}  // namespace

Result<std::unique_ptr<MaskGroup>> MaskGroup::Make(const OrtApi& api, const std::map<std::string, MaskOutput>& masks,
                                                   const std::vector<std::string>& inputs,
                                                   const std::vector<std::string>& outputs,
                                                   std::shared_ptr<const Handshake> handshake) {
  std::unique_ptr<MaskGroup> made(new MaskGroup(api, std::move(handshake)));
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto mask = masks.find(outputs[i]);
    if (mask == masks.end())
      return Status::Internal(fmt::format("a mask group has an output '{}' that is no mask", outputs[i]));
    const auto source = std::ranges::find(inputs, mask->second.source);
    if (source == inputs.end())
      return Status::Internal(fmt::format("a mask group has no input '{}'", mask->second.source));
    made->written_.push_back({i, static_cast<size_t>(source - inputs.begin()), mask->second});
  }
  return made;
}

MaskGroup::MaskGroup(const OrtApi& api, std::shared_ptr<const Handshake> handshake)
    : OrtNodeComputeInfo{}, api_(api), handshake_(std::move(handshake)) {
  ort_version_supported = kApiVersion;
  CreateState = [](OrtNodeComputeInfo* self, OrtNodeComputeContext*, void** state) noexcept -> OrtStatus* {
    *state = self;  // there is none: the group itself is only read
    return nullptr;
  };
  ReleaseState = [](OrtNodeComputeInfo*, void*) noexcept {};
  Compute = [](OrtNodeComputeInfo* self, void*, OrtKernelContext* context) noexcept -> OrtStatus* {
    auto& group = *static_cast<MaskGroup*>(self);
    return ort::Guarded(group.api_, [&] { return group.Run(context); });
  };
}

Status MaskGroup::Run(OrtKernelContext* context) {
  KVSHARE_RETURN_IF_ERROR(checked_([&] { return handshake_->CheckReaders(); }));
  const ort::CallContext call(api_, context);
  for (const Written& written : written_) {
    KVSHARE_ASSIGN_OR_RETURN(const Tensor source, call.Input(written.source));
    if (source.rank != 2)
      return Status::InvalidInput(fmt::format("input '{}' has shape {}; needs rank 2 [B, T], as a mask of keys",
                                              written.mask.source, source.ShapeText()));
    const std::array<int64_t, 4> dims = {source.dims[0], 1, written.mask.rows, source.dims[1]};
    const std::array<int64_t, 3> dims3 = {source.dims[0], written.mask.rows, source.dims[1]};
    KVSHARE_ASSIGN_OR_RETURN(
        const Tensor mask,
        call.Output(written.output, written.mask.rank == 3 ? std::span<const int64_t>(dims3) : dims));
    KVSHARE_RETURN_IF_ERROR(WriteKeyMask(source, mask.data));
  }
  return {};
}

}  // namespace kvshare::ep
