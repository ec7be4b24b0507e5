// What a GroupQueryAttention node is given: its attributes, which inputs may stand together, their ranks and extents.
// Extents and types of the views themselves are judged by CheckAttention and CheckAppend.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "core/ops.h"
#include "kvshare/shapes.h"
#include "kvshare/status.h"
#include "ort/ort_context.h"

namespace kvshare::ort {

using enum gqa::Input;
using GqaInputs = std::array<Tensor, kInputs>;

// k_quant_type, v_quant_type.
enum class QuantType { kNone, kPerTensor, kPerChannel };

struct GqaAttributes {
  int64_t query_heads = 0;
  int64_t kv_heads = 0;
  float scale = 0;  // 0: 1 / sqrt(D)
  float softcap = 0;
  int64_t window = -1;  // keys with the query's own; negative: off
  bool causal = true;
  bool rotary = false;
  bool interleaved = false;
  bool smooth_softmax = false;
  bool window_sized_cache = false;  // sliding_window_cache
  int64_t cache_rows = 0;           // window_cache_rows; 0: off
  DType cache = DType::kF32;        // element type of past, present and the external pair
  QuantType key_quant = QuantType::kNone;
  QuantType value_quant = QuantType::kNone;
  float query_epsilon = 1e-6F;  // of the norms
  float key_epsilon = 1e-6F;
  int64_t qk_output = 0;  // of output_qk: 1 the scores that the softmax takes, 2 its weights

  bool DropsKeys() const { return window_sized_cache || cache_rows > 0; }
};

// Where a call's keys and values come from.
enum class KvForm {
  kOwn,       // key and value, appended to past
  kPacked,    // the same, inside query
  kShared,    // key and value of length 0: past is complete (ONNX Runtime's shared form)
  kExternal,  // external_key and external_value
};

struct GqaShape {
  KvForm form = KvForm::kOwn;
  int64_t B = 0, S = 0, Hq = 0, Hkv = 0, D = 0;
  int64_t total = 0;        // total_sequence_length
  int64_t past_tokens = 0;  // of past, or of the external pair; a window-sized cache's capacity C
  int64_t capacity = 0;     // dim 2 of present; rows of a borrowed cache
  int64_t width = 0;        // dim 3 of present: D, or the bytes of D int4
  bool first_prompt = false;
  bool Appends() const { return form == KvForm::kOwn || form == KvForm::kPacked; }
};

Status CheckGqaAttributes(std::string_view where, const GqaAttributes& attributes, bool zero_window_allowed);
// Reads no element but total_sequence_length.
Result<GqaShape> CheckGqaInputs(std::string_view where, const GqaAttributes& attributes, const GqaInputs& inputs);

}  // namespace kvshare::ort
