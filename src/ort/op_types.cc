#include "ort/op_types.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>

namespace kvshare::ort {
namespace {

constexpr auto kUnknown = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;

std::string Names(std::span<const ONNXTensorElementDataType> types) {
  std::string names;
  for (const auto type : types) names += fmt::format("{}{}", names.empty() ? "" : ", ", NameOf(type));
  return names;
}

// The types that a slot needs instead of `type`; "" where `type` fits. `bound`: of earlier inputs of the same variable.
std::string Want(std::span<const ONNXTensorElementDataType> accepted, ONNXTensorElementDataType bound,
                 ONNXTensorElementDataType type) {
  if (bound != kUnknown && bound != type) return fmt::format("{}, that of the inputs before it", NameOf(bound));
  if (std::ranges::find(accepted, type) == accepted.end()) return fmt::format("one of {}", Names(accepted));
  return "";
}

}  // namespace

ONNXTensorElementDataType FixedType(SlotType type) {
  switch (type) {
    case SlotType::kF32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case SlotType::kI32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case SlotType::kI64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    default: return kUnknown;
  }
}

Result<OpBinding> BindTypes(const OpRow& row, const NodeInfo& node, const SessionConfig& config,
                            const Backend& backend) {
  OpBinding binding{row.domain, row.op, kUnknown, kUnknown, config, &backend};
  for (size_t i = 0; i < row.inputs.size(); ++i) {
    const Slot& slot = row.inputs[i];
    const auto type = node.InputType(i);
    if (type == kUnknown || slot.type == SlotType::kAny) continue;
    std::string want;
    if (slot.type == SlotType::kT || slot.type == SlotType::kCache) {
      const bool is_t = slot.type == SlotType::kT;
      auto& bound = is_t ? binding.t : binding.cache;
      want = Want(is_t ? row.t : row.cache, bound, type);
      bound = type;
    } else if (const auto fixed = FixedType(slot.type); fixed != type) {
      want = NameOf(fixed);
    }
    if (!want.empty())
      return Status::InvalidInput(
          fmt::format("{} '{}': input '{}' has type {}; needs {}", row.op, node.Name(), slot.name, NameOf(type), want));
  }
  if (binding.t == kUnknown)
    return Status::InvalidInput(fmt::format("{} '{}': no kernel for these types", row.op, node.Name()));
  if (binding.cache == kUnknown) binding.cache = binding.t;
  return binding;
}

}  // namespace kvshare::ort
