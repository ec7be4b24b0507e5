#include "ort/check_inputs.h"

#include <fmt/format.h>

#include <algorithm>

namespace kvshare::ort {
namespace {

std::string HasShape(const Tensor& tensor) { return fmt::format("has shape {}", tensor.ShapeText()); }

bool IsLengthVector(const Tensor& tensor, int64_t B) {
  if (tensor.rank == 1) return tensor.dims[0] == B;
  return tensor.rank == 2 && tensor.Count() == B && (tensor.dims[0] == 1 || tensor.dims[1] == 1);
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
  if (key.dims[0] != shape.B || key.dims[1] != shape.Hkv || key.dims[3] != shape.D)
    return InputError(where, key_name, HasShape(key),
                      fmt::format("{}x{}xTx{}, [B, kv_num_heads, T, D]", shape.B, shape.Hkv, shape.D));
  if (!std::ranges::equal(key.Dims(), value.Dims()))
    return InputError(where, value_name, HasShape(value), fmt::format("{}, that of '{}'", key.ShapeText(), key_name));
  *tokens = key.dims[2];
  return {};
}

Status CheckSideInputs(std::string_view where, const GqaAttributes& attributes, const GqaInputs& in,
                       const GqaShape& shape) {
  if (!IsLengthVector(in[kSeqlensK], shape.B))
    return InputError(where, "seqlens_k", HasShape(in[kSeqlensK]),
                      fmt::format("[B], [B, 1] or [1, B] with B = {}", shape.B));
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
  if (const Tensor& sink = in[kHeadSink]; sink && (sink.rank != 1 || sink.dims[0] != shape.Hq))
    return InputError(where, "head_sink", HasShape(sink), fmt::format("[num_heads] = [{}]", shape.Hq));
  return {};
}

}  // namespace

Status InputError(std::string_view where, const char* input, const std::string& fact, const std::string& want) {
  return Status::InvalidInput(fmt::format("{}: input '{}' {}; needs {}", where, input, fact, want));
}

Status CheckRank(std::string_view where, const char* input, const Tensor& tensor, size_t rank, const char* want) {
  if (tensor.rank == rank) return {};
  return InputError(where, input, fmt::format("has rank {} (shape {})", tensor.rank, tensor.ShapeText()), want);
}

Status CheckPair(std::string_view where, const char* a_name, bool a, const char* b_name, bool b) {
  if (a == b) return {};
  return InputError(where, a ? b_name : a_name, fmt::format("is absent while '{}' is given", a ? a_name : b_name),
                    "both or neither");
}

Status CheckGqaAttributes(std::string_view where, const GqaAttributes& a, bool zero_window_allowed) {
  const auto error = [&](const char* name, int64_t value, const char* want) {
    return Status::InvalidInput(fmt::format("{}: attribute '{}' is {}; needs {}", where, name, value, want));
  };
  if (a.query_heads < 1) return error("num_heads", a.query_heads, "at least 1");
  if (a.kv_heads < 1) return error("kv_num_heads", a.kv_heads, "at least 1");
  if (a.query_heads % a.kv_heads != 0)
    return error("num_heads", a.query_heads, fmt::format("a multiple of kv_num_heads = {}", a.kv_heads).c_str());
  if (a.window == 0 && !zero_window_allowed)
    return error("local_window_size", 0, "at least 1 (keys with the query's own), or -1 for no window");
  if (a.window >= 0 && !a.causal) return error("local_window_size", a.window, "causal = 1");
  return {};
}

Result<GqaShape> CheckGqaInputs(std::string_view where, const GqaAttributes& attributes, const GqaInputs& in) {
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

  if (in[kTotalSequenceLength].Count() != 1)
    return InputError(where, "total_sequence_length", HasShape(in[kTotalSequenceLength]), "one number");
  shape.total = *static_cast<const int32_t*>(in[kTotalSequenceLength].data);
  if (shape.total < std::max<int64_t>(1, shape.S))
    return InputError(where, "total_sequence_length", fmt::format("is {}", shape.total),
                      fmt::format("at least {}, {}", std::max<int64_t>(1, shape.S), shape.S > 1 ? "S" : "one token"));
  shape.first_prompt = shape.S == shape.total;

  if (in[kKey]) {
    const Tensor& key = in[kKey];
    if (key.dims[0] != shape.B || (shape.form == KvForm::kOwn && key.dims[1] != shape.S) ||
        key.dims[2] != shape.Hkv * shape.D)
      return InputError(where, "key", HasShape(key),
                        fmt::format("{}x{}x{}, [B, S (or 0 where past is complete), kv_num_heads*D]", shape.B, shape.S,
                                    shape.Hkv * shape.D));
    if (!std::ranges::equal(key.Dims(), in[kValue].Dims()))
      return InputError(where, "value", HasShape(in[kValue]), fmt::format("{}, that of 'key'", key.ShapeText()));
  }
  if (in[kPastKey])
    KVSHARE_RETURN_IF_ERROR(
        CheckCache(where, "past_key", in[kPastKey], "past_value", in[kPastValue], shape, &shape.past_tokens));
  if (in[kExternalKey])
    KVSHARE_RETURN_IF_ERROR(CheckCache(where, "external_key", in[kExternalKey], "external_value", in[kExternalValue],
                                       shape, &shape.past_tokens));
  if (shape.form == KvForm::kShared && !in[kPastKey])
    return InputError(where, "key", "has length 0 and there is no past",
                      "past_key and past_value with the complete keys");
  if (!shape.Appends() && shape.total > shape.past_tokens)
    return InputError(where, "total_sequence_length", fmt::format("is {}", shape.total),
                      fmt::format("at most {}, the rows of '{}'", shape.past_tokens,
                                  shape.form == KvForm::kShared ? "past_key" : "external_key"));
  shape.capacity = shape.Appends() ? std::max(shape.total, shape.past_tokens) : shape.past_tokens;
  KVSHARE_RETURN_IF_ERROR(CheckSideInputs(where, attributes, in, shape));
  return shape;
}

Status CheckGqaLengths(std::string_view where, const GqaAttributes& attributes, const GqaInputs& in,
                       const GqaShape& shape, const GqaLengths& lengths, const int64_t** rotary_positions) {
  const auto* seqlens = static_cast<const int32_t*>(in[kSeqlensK].data);
  const int64_t limit = in[kAttentionBias] ? std::min(shape.total, shape.capacity) : shape.capacity;
  for (int64_t b = 0; b < shape.B; ++b) {
    const auto error = [&](const std::string& want) {
      return InputError(where, "seqlens_k", fmt::format("has seqlens_k[{}] = {}", b, seqlens[b]), want);
    };
    const int64_t length = int64_t{seqlens[b]} + 1;
    if (length < 1 || length > limit)
      return error(
          fmt::format("0 to {}, {}", limit - 1,
                      limit < shape.capacity ? "the last column of 'attention_bias'" : "the last row of the cache"));
    const int64_t before = shape.first_prompt ? 0 : length - shape.S;
    if (before < 0) return error(fmt::format("at least {}: the last of the S = {} new tokens", shape.S - 1, shape.S));
    if (shape.Appends() && before > shape.past_tokens)
      return error(fmt::format("at most {}: {} past rows and S = {} new ones", shape.past_tokens + shape.S - 1,
                               shape.past_tokens, shape.S));
    lengths.length[b] = length;
    lengths.query_position[b] = before;
    lengths.past_length[b] = before;
  }

  *rotary_positions = nullptr;
  if (!attributes.rotary) return {};
  const int64_t rows = in[kCosCache].dims[0];
  const auto too_far = [&](int64_t b, int64_t position) {
    return InputError(where, "cos_cache", fmt::format("has {} rows", rows),
                      fmt::format("a row for position {} of batch {}", position, b));
  };
  const Tensor& ids = in[kPositionIds];
  if (!ids) {
    for (int64_t b = 0; b < shape.B; ++b)
      if (lengths.query_position[b] + shape.S > rows) return too_far(b, lengths.query_position[b] + shape.S - 1);
    return {};
  }
  const auto* position = static_cast<const int64_t*>(ids.data);
  if (shape.first_prompt ? ids.Count() < 1 : (ids.rank != 2 || ids.dims[0] != shape.B || ids.dims[1] != shape.S))
    return InputError(where, "position_ids", HasShape(ids), fmt::format("{}x{}, [B, S]", shape.B, shape.S));
  for (int64_t b = 0; b < shape.B; ++b)
    for (int64_t s = 0; s < shape.S; ++s) {
      // ONNX Runtime's rule: on a first prompt the first number counts, for all sequences.
      const int64_t p = shape.first_prompt ? position[0] + s : position[b * shape.S + s];
      if (p < 0 || p >= rows)
        return InputError(where, "position_ids", fmt::format("puts token {} of batch {} at {}", s, b, p),
                          fmt::format("0 to {}, the last row of 'cos_cache'", rows - 1));
      if (shape.first_prompt) lengths.rotary[b * shape.S + s] = p;
    }
  *rotary_positions = shape.first_prompt ? lengths.rotary : position;
  return {};
}

}  // namespace kvshare::ort
