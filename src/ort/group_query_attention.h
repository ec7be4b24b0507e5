// GroupQueryAttention, of domain kvshare and in place of com.microsoft's.
#pragma once

#include "ort/custom_op.h"

namespace kvshare::ort {

inline constexpr Slot kGqaInputs[] = {
    {"query", SlotType::kT, true},
    {"key", SlotType::kT},
    {"value", SlotType::kT},
    {"past_key", SlotType::kCache},
    {"past_value", SlotType::kCache},
    {"seqlens_k", SlotType::kI32, true},
    {"total_sequence_length", SlotType::kI32, true},
    {"cos_cache", SlotType::kT},
    {"sin_cache", SlotType::kT},
    {"position_ids", SlotType::kI64},
    {"attention_bias", SlotType::kT},
    {"head_sink", SlotType::kT},
    {"k_scale", SlotType::kF32},
    {"v_scale", SlotType::kF32},
    {"q_norm_weight", SlotType::kT},
    {"k_norm_weight", SlotType::kT},
    {"query_seqlens", SlotType::kI32},
    {"external_key", SlotType::kCache},
    {"external_value", SlotType::kCache},
};
inline constexpr Slot kGqaOutputs[] = {
    {"output", SlotType::kT, true},
    {"present_key", SlotType::kCache},
    {"present_value", SlotType::kCache},
    {"output_qk", SlotType::kT},
};

Result<std::unique_ptr<Kernel>> CreateGqa(const OpBinding& binding, const NodeInfo& node);
Status InferGqa(const InferContext& context);

}  // namespace kvshare::ort
