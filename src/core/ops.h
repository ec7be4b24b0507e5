// The attention operators that kvshare serves: what their inputs, outputs and attributes are called. The one table that
// the op libraries, `kvshare inspect` and docs/ops.md go by.
#pragma once

#include <array>
#include <cstddef>
#include <iterator>
#include <span>
#include <string_view>

namespace kvshare {

// The type of an input or output: fixed, any, or one of two that a node chooses.
//   GroupQueryAttention: kT is query's, kCache is past's and external's;  Attention: kT is ONNX's T1, kCache its T2.
enum class SlotType { kT, kCache, kF32, kI32, kI64, kAny };

struct Slot {
  const char* name;
  SlotType type;
  bool required = false;
  bool on_host = false;  // the host reads it, whichever provider runs the op
};

struct Attribute {
  const char* name;
  // The operator's own schema lacks it: ONNX Runtime's kernel ignores it, kvshare's drop-in does not.
  bool drop_in_only = false;
};

struct Operator {
  const char* domain;  // "" is ai.onnx
  const char* name;
  std::span<const Slot> inputs;
  std::span<const Slot> outputs;
  std::span<const Attribute> attributes;

  bool Has(std::string_view attribute) const;
};

// Places of the slots in the tables.
namespace gqa {
enum Input : size_t {
  kQuery,
  kKey,
  kValue,
  kPastKey,
  kPastValue,
  kSeqlensK,
  kTotalSequenceLength,
  kCosCache,
  kSinCache,
  kPositionIds,
  kAttentionBias,
  kHeadSink,
  kKScale,
  kVScale,
  kQNormWeight,
  kKNormWeight,
  kQuerySeqlens,
  kExternalKey,
  kExternalValue,
  kInputs
};
enum Output : size_t { kOutput, kPresentKey, kPresentValue, kOutputQk, kOutputs };
}  // namespace gqa

namespace attention {
enum Input : size_t { kQ, kK, kV, kMask, kPastK, kPastV, kNonpad, kKeyMask, kInputs };
enum Output : size_t { kY, kPresentKey, kPresentValue, kScores, kOutputs };
}  // namespace attention

// 0 to 16 are ONNX Runtime 1.32's.
inline constexpr Slot kGqaInputs[] = {
    {"query", SlotType::kT, true},
    {"key", SlotType::kT},
    {"value", SlotType::kT},
    {"past_key", SlotType::kCache},
    {"past_value", SlotType::kCache},
    {"seqlens_k", SlotType::kI32, true},
    {"total_sequence_length", SlotType::kI32, true, /*on_host=*/true},
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
static_assert(std::size(kGqaInputs) == gqa::kInputs);

inline constexpr Slot kGqaOutputs[] = {
    {"output", SlotType::kT, true},
    {"present_key", SlotType::kCache},
    {"present_value", SlotType::kCache},
    {"output_qk", SlotType::kT},
};
static_assert(std::size(kGqaOutputs) == gqa::kOutputs);

inline constexpr Attribute kKvshareGqaAttributes[] = {
    {"num_heads"},
    {"kv_num_heads"},
    {"scale"},
    {"softcap"},
    {"causal"},
    {"local_window_size"},
    {"do_rotary"},
    {"rotary_interleaved"},
    {"smooth_softmax"},
    {"qk_output"},
    {"sliding_window_cache"},
    {"k_quant_type"},
    {"v_quant_type"},
    {"kv_cache_bit_width"},
    {"qk_norm_epsilon"},
    {"q_norm_epsilon"},
    {"k_norm_epsilon"},
    {"window_cache_rows"},  // the last: com.microsoft has none
};
inline constexpr auto kGqaAttributes =
    std::span<const Attribute>(kKvshareGqaAttributes).first(std::size(kKvshareGqaAttributes) - 1);

inline constexpr Slot kAttentionInputs[] = {
    {"Q", SlotType::kT, true},
    {"K", SlotType::kT, true},
    {"V", SlotType::kCache, true},
    {"attn_mask", SlotType::kAny},
    {"past_key", SlotType::kT},
    {"past_value", SlotType::kCache},
    {"nonpad_kv_seqlen", SlotType::kI64},
    {"key_mask", SlotType::kAny},
};
static_assert(std::size(kAttentionInputs) == attention::kInputs);
inline constexpr auto kOnnxAttentionInputs = std::span<const Slot>(kAttentionInputs).first(attention::kKeyMask);

inline constexpr Slot kAttentionOutputs[] = {
    {"Y", SlotType::kT, true},
    {"present_key", SlotType::kT},
    {"present_value", SlotType::kCache},
    {"qk_matmul_output", SlotType::kT},
};
static_assert(std::size(kAttentionOutputs) == attention::kOutputs);

inline constexpr std::array kKvshareAttentionAttributes = std::to_array<Attribute>({
    {"q_num_heads"},
    {"kv_num_heads"},
    {"scale"},
    {"softcap"},
    {"is_causal"},
    {"left_window_size"},
    {"right_window_size"},
    {"qk_matmul_output_mode"},
    {"softmax_precision"},
    {"local_window_size"},  // the last: ai.onnx has none
});
inline constexpr auto kOnnxAttentionAttributes = [] {
  auto attributes = kKvshareAttentionAttributes;
  attributes.back().drop_in_only = true;
  return attributes;
}();

std::span<const Operator> Operators();
// Null for an operator that is not kvshare's to serve. `domain` may be "ai.onnx", which is "".
const Operator* FindOperator(std::string_view domain, std::string_view name);

}  // namespace kvshare
