// Attention, of domain kvshare and in place of ai.onnx's.
#pragma once

#include "ort/custom_op.h"

namespace kvshare::ort {

inline constexpr Slot kKvshareAttentionInputs[] = {
    {"Q", SlotType::kT, true},
    {"K", SlotType::kT, true},
    {"V", SlotType::kCache, true},
    {"attn_mask", SlotType::kAny},
    {"past_key", SlotType::kT},
    {"past_value", SlotType::kCache},
    {"nonpad_kv_seqlen", SlotType::kI64},
    {"key_mask", SlotType::kAny},
};
// ONNX's own, without key_mask.
inline constexpr std::span<const Slot> kOnnxAttentionInputs(kKvshareAttentionInputs, 7);
inline constexpr Slot kAttentionOutputs[] = {
    {"Y", SlotType::kT, true},
    {"present_key", SlotType::kT},
    {"present_value", SlotType::kCache},
    {"qk_matmul_output", SlotType::kT},
};

Result<std::unique_ptr<Kernel>> CreateAttention(const OpBinding& binding, const NodeInfo& node);
Status InferAttention(const InferContext& context);

}  // namespace kvshare::ort
