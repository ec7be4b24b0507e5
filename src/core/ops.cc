#include "core/ops.h"

#include <algorithm>
#include <iterator>

namespace kvshare {
namespace {

constexpr Operator kOperators[] = {
    {"kvshare", "GroupQueryAttention", kGqaInputs, kGqaOutputs, kKvshareGqaAttributes},
    {"kvshare", "Attention", kAttentionInputs, kAttentionOutputs, kKvshareAttentionAttributes},
    {"com.microsoft", "GroupQueryAttention", kGqaInputs, kGqaOutputs, kGqaAttributes},
    {"", "Attention", kOnnxAttentionInputs, kAttentionOutputs, kOnnxAttentionAttributes},
};

}  // namespace

bool Operator::Has(std::string_view attribute) const {
  return std::ranges::any_of(attributes, [&](const Attribute& a) { return a.name == attribute; });
}

std::span<const Operator> Operators() { return kOperators; }

const Operator* FindOperator(std::string_view domain, std::string_view name) {
  if (domain == "ai.onnx") domain = "";
  const auto* const found =
      std::ranges::find_if(kOperators, [&](const Operator& op) { return op.domain == domain && op.name == name; });
  return found == std::end(kOperators) ? nullptr : found;
}

}  // namespace kvshare
