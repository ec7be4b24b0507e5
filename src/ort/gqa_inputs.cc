#include "ort/gqa_inputs.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "ort/input_error.h"

namespace kvshare::ort {
namespace {

std::string HasShape(const Tensor& tensor) { return fmt::format("has shape {}", tensor.ShapeText()); }

bool IsLengthVector(const Tensor& tensor, int64_t B) {
  return tensor.Count() == B && std::ranges::find(tensor.Dims(), B) != tensor.Dims().end();
}

Result<KvForm> FormOf(std::string_view where, const GqaInputs& in) {
  KVSHARE_RETURN_IF_ERROR(CheckPair(where, "key", bool(in[kKey]), "value", bool(in[kValue])));
  KVSHARE_RETURN_IF_ERROR(CheckPair(where, "past_key", bool(in[kPastKey]), "past_value", bool(in[kPastValue])));
  KVSHARE_RETURN_IF_ERROR(
      CheckPair(where, "external_key", bool(in[kExternalKey]), "external_value", bool(in[kExternalValue])));
  if (in[kExternalKey]) {
    const char* clash = in[kKey] ? "key" : in[kPastKey] ? "past_key" : nullptr;
    if (clash != nullptr)
      return InputError(where, "external_key", fmt::format("is given together with '{}'", clash),
                        "key, value, past_key and past_value absent: borrowed keys are complete");
    return KvForm::kExternal;
  }
  if (!in[kKey]) return KvForm::kPacked;
  KVSHARE_RETURN_IF_ERROR(CheckRank(where, "key", in[kKey], 3, "rank 3 [B, S, Hkv*D]"));
  return in[kKey].dims[1] == 0 && in[kQuery].dims[1] != 0 ? KvForm::kShared : KvForm::kOwn;
}

// [B, Hkv, tokens, D] of a cache or a borrowed pair; sets tokens.
Status CheckCache(std::string_view where, const char* key_name, const Tensor& key, const char* value_name,
                  const Tensor& value, const GqaShape& shape, int64_t* tokens) {
  KVSHARE_RETURN_IF_ERROR(CheckRank(where, key_name, key, 4, "rank 4 [B, Hkv, T, D]"));
  KVSHARE_RETURN_IF_ERROR(CheckRank(where, value_name, value, 4, "rank 4 [B, Hkv, T, D]"));
  if (key.dims[0] != shape.B || key.dims[1] != shape.Hkv || key.dims[3] != shape.width)
    return InputError(where, key_name, HasShape(key),
                      fmt::format("{}x{}xTx{}, [B, kv_num_heads, T, {}]", shape.B, shape.Hkv, shape.width,
                                  shape.width == shape.D ? "D" : "(D + 1) / 2"));
  if (!std::ranges::equal(key.Dims(), value.Dims()))
    return InputError(where, value_name, HasShape(value), fmt::format("{}, that of '{}'", key.ShapeText(), key_name));
  *tokens = key.dims[2];
  return {};
}

// A quantized cache goes with scales: one, or one a channel of a key-value head.
Status CheckScale(std::string_view where, const char* name, const Tensor& scale, QuantType type,
                  const GqaShape& shape) {
  if (type == QuantType::kNone) return {};
  if (!scale) return InputError(where, name, "is absent", "the scale of the quantized cache");
  const int64_t count = type == QuantType::kPerTensor ? 1 : shape.Hkv * shape.D;
  if (scale.Count() == count) return {};
  return InputError(where, name, HasShape(scale),
                    fmt::format("{} elements, {}", count,
                                type == QuantType::kPerTensor ? "one a tensor" : "one a channel, kv_num_heads*D"));
}

Status CheckVector(std::string_view where, const char* name, const Tensor& tensor, int64_t count, const char* want) {
  if (!tensor || (tensor.rank == 1 && tensor.dims[0] == count)) return {};
  return InputError(where, name, HasShape(tensor), fmt::format("[{}] = [{}]", want, count));
}

Status CheckSideInputs(std::string_view where, const GqaAttributes& attributes, const GqaInputs& in,
                       const GqaShape& shape) {
  if (!IsLengthVector(in[kSeqlensK], shape.B))
    return InputError(where, "seqlens_k", HasShape(in[kSeqlensK]),
                      fmt::format("[B], or B among dimensions of 1, with B = {}", shape.B));
  if (attributes.rotary) {
    KVSHARE_RETURN_IF_ERROR(CheckPair(where, "cos_cache", bool(in[kCosCache]), "sin_cache", bool(in[kSinCache])));
    if (!in[kCosCache]) return InputError(where, "cos_cache", "is absent", "both tables, because do_rotary is 1");
    const Tensor& cos = in[kCosCache];
    KVSHARE_RETURN_IF_ERROR(CheckRank(where, "cos_cache", cos, 2, "rank 2 [max_positions, rotary_dim / 2]"));
    if (!std::ranges::equal(cos.Dims(), in[kSinCache].Dims()))
      return InputError(where, "sin_cache", HasShape(in[kSinCache]),
                        fmt::format("{}, that of 'cos_cache'", cos.ShapeText()));
    if (cos.dims[1] < 1 || 2 * cos.dims[1] > shape.D)
      return InputError(where, "cos_cache", HasShape(cos),
                        fmt::format("1 to {} columns, half of D = {}", shape.D / 2, shape.D));
  }
  if (const Tensor& bias = in[kAttentionBias]) {
    KVSHARE_RETURN_IF_ERROR(CheckRank(where, "attention_bias", bias, 4, "rank 4 [B or 1, num_heads or 1, S, total]"));
    if ((bias.dims[0] != 1 && bias.dims[0] != shape.B) || (bias.dims[1] != 1 && bias.dims[1] != shape.Hq) ||
        bias.dims[2] != shape.S || bias.dims[3] != shape.total)
      return InputError(
          where, "attention_bias", HasShape(bias),
          fmt::format("{}x{}x{}x{}, the first two of them or 1", shape.B, shape.Hq, shape.S, shape.total));
  }
  KVSHARE_RETURN_IF_ERROR(CheckVector(where, "head_sink", in[kHeadSink], shape.Hq, "num_heads"));
  KVSHARE_RETURN_IF_ERROR(CheckVector(where, "q_norm_weight", in[kQNormWeight], shape.D, "D"));
  KVSHARE_RETURN_IF_ERROR(CheckVector(where, "k_norm_weight", in[kKNormWeight], shape.D, "D"));
  if (shape.Appends())
    KVSHARE_RETURN_IF_ERROR(
        CheckPair(where, "q_norm_weight", bool(in[kQNormWeight]), "k_norm_weight", bool(in[kKNormWeight])));
  KVSHARE_RETURN_IF_ERROR(CheckScale(where, "k_scale", in[kKScale], attributes.key_quant, shape));
  KVSHARE_RETURN_IF_ERROR(CheckScale(where, "v_scale", in[kVScale], attributes.value_quant, shape));
  if (in[kQuerySeqlens] && !IsLengthVector(in[kQuerySeqlens], shape.B))
    return InputError(where, "query_seqlens", HasShape(in[kQuerySeqlens]), fmt::format("[B] = [{}]", shape.B));
  return {};
}

// Rows of a present with window_cache_rows: those, and for a longer chunk what the layers see that borrow it. A caller
// may have a cache of fewer rows, for sequences or chunks that need no more.
int64_t LatestRowsAfter(const GqaAttributes& attributes, const GqaShape& shape) {
  const int64_t seen = attributes.window - 1 + shape.S;
  const bool fewer = shape.past_tokens > 0 && shape.past_tokens < attributes.cache_rows;
  return fewer ? std::max(shape.past_tokens, std::min(seen, shape.total)) : std::max(attributes.cache_rows, seen);
}

// B, S, the heads, and D by query's extents.
Result<GqaShape> QueryShape(std::string_view where, const GqaAttributes& attributes, const GqaInputs& in) {
  GqaShape shape;
  const Tensor& query = in[kQuery];
  KVSHARE_RETURN_IF_ERROR(CheckRank(where, "query", query, 3, "rank 3 [B, S, num_heads*D]"));
  KVSHARE_ASSIGN_OR_RETURN(shape.form, FormOf(where, in));
  shape.B = query.dims[0];
  shape.S = query.dims[1];
  shape.Hq = attributes.query_heads;
  shape.Hkv = attributes.kv_heads;
  const int64_t heads = shape.form == KvForm::kPacked ? shape.Hq + 2 * shape.Hkv : shape.Hq;
  if (query.dims[2] == 0 || query.dims[2] % heads != 0)
    return InputError(where, "query", HasShape(query),
                      fmt::format("a last extent that {} heads{} divide", heads,
                                  shape.form == KvForm::kPacked ? " (packed query, key and value)" : ""));
  shape.D = query.dims[2] / heads;
  shape.width = attributes.cache == DType::kI4 ? (shape.D + 1) / 2 : shape.D;
  return shape;
}

Status ReadTotal(std::string_view where, const GqaInputs& in, GqaShape& shape) {
  if (in[kTotalSequenceLength].Count() != 1)
    return InputError(where, "total_sequence_length", HasShape(in[kTotalSequenceLength]), "one number");
  shape.total = *static_cast<const int32_t*>(in[kTotalSequenceLength].data);
  // With query_seqlens the chunk is padded: less than S may be new, and the total is only a bound.
  const bool padded = bool(in[kQuerySeqlens]);
  const int64_t least = padded ? 1 : std::max<int64_t>(1, shape.S);
  if (shape.total < least)
    return InputError(where, "total_sequence_length", fmt::format("is {}", shape.total),
                      fmt::format("at least {}, {}", least, least > 1 ? "S" : "one token"));
  shape.first_prompt = !padded && shape.S == shape.total;
  return {};
}

Status CheckNewKeys(std::string_view where, const GqaInputs& in, const GqaShape& shape) {
  const Tensor& key = in[kKey];
  if (!key) return {};
  if (key.dims[0] != shape.B || (shape.form == KvForm::kOwn && key.dims[1] != shape.S) ||
      key.dims[2] != shape.Hkv * shape.D)
    return InputError(where, "key", HasShape(key),
                      fmt::format("{}x{}x{}, [B, S (or 0 where past is complete), kv_num_heads*D]", shape.B, shape.S,
                                  shape.Hkv * shape.D));
  if (std::ranges::equal(key.Dims(), in[kValue].Dims())) return {};
  return InputError(where, "value", HasShape(in[kValue]), fmt::format("{}, that of 'key'", key.ShapeText()));
}

// Checks past or the external pair, and sets past_tokens.
Status CheckCaches(std::string_view where, const GqaAttributes& attributes, const GqaInputs& in, GqaShape& shape) {
  if (in[kPastKey])
    KVSHARE_RETURN_IF_ERROR(
        CheckCache(where, "past_key", in[kPastKey], "past_value", in[kPastValue], shape, &shape.past_tokens));
  if (in[kExternalKey])
    KVSHARE_RETURN_IF_ERROR(CheckCache(where, "external_key", in[kExternalKey], "external_value", in[kExternalValue],
                                       shape, &shape.past_tokens));
  if (shape.form == KvForm::kShared && !in[kPastKey])
    return InputError(where, "key", "has length 0 and there is no past",
                      "past_key and past_value with the complete keys");
  const char* cache = in[kExternalKey] ? "external_key" : "past_key";
  if (attributes.window_sized_cache && shape.past_tokens < attributes.window) {
    if (!in[kExternalKey] && !in[kPastKey])
      return InputError(where, cache, "is absent", "the window-sized cache, because sliding_window_cache is 1");
    return InputError(
        where, cache, fmt::format("has {} rows", shape.past_tokens),
        fmt::format("at least local_window_size = {}, because sliding_window_cache is 1", attributes.window));
  }
  if (!shape.Appends() && !attributes.DropsKeys() && shape.total > shape.past_tokens)
    return InputError(where, "total_sequence_length", fmt::format("is {}", shape.total),
                      fmt::format("at most {}, the rows of '{}'", shape.past_tokens, cache));
  return {};
}

}  // namespace

Status CheckGqaAttributes(std::string_view where, const GqaAttributes& a, bool zero_window_allowed) {
  const auto error = [&](const char* name, int64_t value, const char* want) {
    return Status::InvalidInput(fmt::format("{}: attribute '{}' is {}; needs {}", where, name, value, want));
  };
  // So that sums and products with the other extents stay in range.
  constexpr int64_t kMostHeads = std::numeric_limits<int32_t>::max();
  if (a.query_heads < 1) return error("num_heads", a.query_heads, "at least 1");
  if (a.query_heads > kMostHeads)
    return error("num_heads", a.query_heads, fmt::format("at most {}", kMostHeads).c_str());
  if (a.kv_heads < 1) return error("kv_num_heads", a.kv_heads, "at least 1");
  if (a.query_heads % a.kv_heads != 0)
    return error("num_heads", a.query_heads, fmt::format("a multiple of kv_num_heads = {}", a.kv_heads).c_str());
  if (a.window == 0 && !zero_window_allowed)
    return error("local_window_size", 0, "at least 1 (keys with the query's own), or -1 for no window");
  if (a.qk_output < 0 || a.qk_output > 2)
    return error("qk_output", a.qk_output, "0 (none), 1 (before the softmax) or 2 (after)");
  if (a.window >= 0 && !a.causal) return error("local_window_size", a.window, "causal = 1");
  if (a.window_sized_cache && a.window < 1)
    return error("local_window_size", a.window, "at least 1, because sliding_window_cache is 1");
  if (a.cache_rows != 0 && (a.window < 1 || a.cache_rows < a.window || a.cache_rows > kMostHeads))
    return error("window_cache_rows", a.cache_rows,
                 a.window < 1 ? "local_window_size of at least 1"
                              : fmt::format("local_window_size = {} to {}", a.window, kMostHeads).c_str());
  if (a.cache_rows != 0 && a.window_sized_cache)
    return error("window_cache_rows", a.cache_rows, "sliding_window_cache = 0, which has its rows from its past");
  for (const auto& [name, epsilon] : {std::pair{"q_norm_epsilon", a.query_epsilon}, {"k_norm_epsilon", a.key_epsilon}})
    if (!std::isfinite(epsilon) || epsilon <= 0)
      return Status::InvalidInput(
          fmt::format("{}: attribute '{}' is {}; needs a finite number above 0", where, name, epsilon));
  for (const auto& [name, type] : {std::pair{"k_quant_type", a.key_quant}, {"v_quant_type", a.value_quant}})
    if (IsQuantized(a.cache) != (type != QuantType::kNone))
      return Status::InvalidInput(fmt::format("{}: attribute '{}' is {}; needs {} for a cache of {}", where, name,
                                              type == QuantType::kNone ? "NONE" : "a quantization",
                                              IsQuantized(a.cache) ? "PER_TENSOR or PER_CHANNEL" : "NONE",
                                              NameOf(a.cache)));
  return {};
}

Result<GqaShape> CheckGqaInputs(std::string_view where, const GqaAttributes& attributes, const GqaInputs& in) {
  KVSHARE_ASSIGN_OR_RETURN(GqaShape shape, QueryShape(where, attributes, in));
  KVSHARE_RETURN_IF_ERROR(ReadTotal(where, in, shape));
  KVSHARE_RETURN_IF_ERROR(CheckNewKeys(where, in, shape));
  KVSHARE_RETURN_IF_ERROR(CheckCaches(where, attributes, in, shape));
  shape.capacity = shape.past_tokens;
  if (shape.Appends() && attributes.cache_rows > 0) shape.capacity = LatestRowsAfter(attributes, shape);
  if (shape.Appends() && !attributes.DropsKeys()) shape.capacity = std::max(shape.total, shape.past_tokens);
  KVSHARE_RETURN_IF_ERROR(CheckSideInputs(where, attributes, in, shape));
  return shape;
}

}  // namespace kvshare::ort
