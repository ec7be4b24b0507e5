// The checks that come before there are views: which inputs may stand together, ranks, and the values of lengths and
// positions. Extents and types of the views themselves are judged by CheckAttention and CheckAppend.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "ort/ort_context.h"

namespace kvshare::ort {

// GroupQueryAttention's inputs; 0 to 16 are ONNX Runtime 1.32's.
enum GqaInput : size_t {
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
  kGqaInputCount
};
using GqaInputs = std::array<Tensor, kGqaInputCount>;

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
  int64_t past_tokens = 0;  // of past, or of the external pair
  int64_t capacity = 0;     // rows of the keys that queries look at; dim 2 of present
  bool first_prompt = false;
  bool Appends() const { return form == KvForm::kOwn || form == KvForm::kPacked; }
};

// The numbers of one call, each array with room for B, rotary for B*S.
struct GqaLengths {
  int64_t* length;          // valid rows afterwards
  int64_t* query_position;  // of row 0
  int64_t* past_length;     // rows that the new ones follow
  int64_t* rotary;          // filled on a first prompt with position_ids
};

// "<where>: input '<input>' <fact>; needs <want>"
Status InputError(std::string_view where, const char* input, const std::string& fact, const std::string& want);
// Refuses another rank than `rank`, e.g. with want "rank 4 [B, Hkv, T, D]".
Status CheckRank(std::string_view where, const char* input, const Tensor& tensor, size_t rank, const char* want);
// Both or neither of a pair.
Status CheckPair(std::string_view where, const char* a_name, bool a, const char* b_name, bool b);

Status CheckGqaAttributes(std::string_view where, const GqaAttributes& attributes, bool zero_window_allowed);
// Reads no element but total_sequence_length.
Result<GqaShape> CheckGqaInputs(std::string_view where, const GqaAttributes& attributes, const GqaInputs& inputs);
// Reads seqlens_k and position_ids, and fills `lengths`. `*rotary_positions` is null where the default is right.
Status CheckGqaLengths(std::string_view where, const GqaAttributes& attributes, const GqaInputs& inputs,
                       const GqaShape& shape, const GqaLengths& lengths, const int64_t** rotary_positions);

}  // namespace kvshare::ort
