// The only judge of shapes. Reads extents, types, lengths and positions; never a tensor element.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/shared_memory.h"
#include "kvshare/call.h"

namespace kvshare {
namespace {

// Keys are numbered in 32 bits inside the kernels.
constexpr int64_t kMaxTokens = std::numeric_limits<int32_t>::max() - 64;

template <typename... Args>
Status Bad(std::string_view where, fmt::format_string<Args...> format, Args&&... args) {
  return Status::InvalidInput(fmt::format("{}: {}", where, fmt::format(format, std::forward<Args>(args)...)));
}

template <typename View>
std::string ShapeOf(const View& v) {
  return fmt::format("[B {}, heads {}, tokens {}, D {}]", v.batch, v.heads, v.tokens, v.head_size);
}

bool IsFloat(DType type) { return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16; }

template <typename View>
Status CheckView(const View& v, std::string_view name, std::string_view where) {
  if (v.batch < 0 || v.heads <= 0 || v.tokens < 0 || v.head_size <= 0)
    return Bad(where, "input '{}' has shape {}; needs B and tokens >= 0, heads and D > 0", name, ShapeOf(v));
  if (v.tokens > kMaxTokens)
    return Bad(where, "input '{}' has {} tokens; needs at most {}", name, v.tokens, kMaxTokens);
  if (v.data == nullptr && v.batch > 0 && v.tokens > 0)
    return Bad(where, "input '{}' is absent; needs {}", name, ShapeOf(v));
  return {};
}

// A quantized type goes with scales, and with nothing else.
template <typename View>
Status CheckQuant(const View& v, std::string_view name, std::string_view where) {
  if (IsQuantized(v.type) == (v.quant.scale != nullptr)) return {};
  return Bad(where,
             "'{}' has type {} and {} scale; needs a scale with int8, int4 and float8e4m3fn, and none with others",
             name, NameOf(v.type), v.quant.scale != nullptr ? "a" : "no");
}

// f32, f16 and bf16 mix freely (the kernels sum in f32), and keys and values may be quantized; f64 is served by the
// oracle and does not mix.
Status CheckTypes(const AttentionCall& call, std::string_view where) {
  const struct {
    const char* name;
    DType type;
    bool cache;
  } tensors[] = {{"query", call.query.type, false},
                 {"key", call.key.type, true},
                 {"value", call.value.type, true},
                 {"output", call.output.type, false}};
  const bool double_precision = call.query.type == DType::kF64;
  for (const auto& tensor : tensors) {
    const bool served = double_precision ? tensor.type == DType::kF64
                                         : IsFloat(tensor.type) || (tensor.cache && IsQuantized(tensor.type));
    if (!served)
      return Status::Refused(
          fmt::format("{}: no kernel for {} '{}' with {} 'query'; have f32, f16, bf16 in any mix, 'key' and 'value' "
                      "also int8, int4, float8e4m3fn, or f64 alone",
                      where, NameOf(tensor.type), tensor.name, NameOf(call.query.type)));
  }
  KVSHARE_RETURN_IF_ERROR(CheckQuant(call.key, "key", where));
  return CheckQuant(call.value, "value", where);
}

Status CheckNorm(const NormView& norm, DType data_type, std::string_view where) {
  if (!norm) return {};
  if (!IsFloat(norm.type) && (norm.type != DType::kF64 || data_type != DType::kF64))
    return Bad(where, "norm weight has type {}; needs f32, f16 or bf16 (f64 with f64 data)", NameOf(norm.type));
  if (!std::isfinite(norm.epsilon) || norm.epsilon <= 0)
    return Bad(where, "norm epsilon is {}; needs a finite number above 0", norm.epsilon);
  return {};
}

Status CheckShapes(const AttentionCall& call, std::string_view where) {
  const HeadsView& q = call.query;
  const HeadsView& k = call.key;
  const HeadsView& v = call.value;
  KVSHARE_RETURN_IF_ERROR(CheckView(q, "query", where));
  KVSHARE_RETURN_IF_ERROR(CheckView(k, "key", where));
  KVSHARE_RETURN_IF_ERROR(CheckView(v, "value", where));
  KVSHARE_RETURN_IF_ERROR(CheckView(call.output, "output", where));
  if (k.batch != q.batch)
    return Bad(where, "input 'key' has B = {} (shape {}); needs B = {} like 'query'", k.batch, ShapeOf(k), q.batch);
  if (v.batch != q.batch)
    return Bad(where, "input 'value' has B = {} (shape {}); needs B = {} like 'query'", v.batch, ShapeOf(v), q.batch);
  if (k.head_size != q.head_size)
    return Bad(where, "input 'key' has D = {} (shape {}); needs D = {} like 'query'", k.head_size, ShapeOf(k),
               q.head_size);
  if (v.heads != k.heads) return Bad(where, "input 'value' has {} heads; needs {} like 'key'", v.heads, k.heads);
  if (v.tokens != k.tokens) return Bad(where, "input 'value' has {} tokens; needs {} like 'key'", v.tokens, k.tokens);
  if (q.heads % k.heads != 0)
    return Bad(where, "input 'query' has {} heads; needs a multiple of the {} heads of 'key'", q.heads, k.heads);
  const MutableHeadsView& o = call.output;
  if (o.batch != q.batch || o.heads != q.heads || o.tokens != q.tokens || o.head_size != v.head_size)
    return Bad(where, "output has shape {}; needs [B {}, heads {}, tokens {}, D {}]", ShapeOf(o), q.batch, q.heads,
               q.tokens, v.head_size);
  return {};
}

Status CheckSpec(const AttentionSpec& spec, std::string_view where) {
  if (!std::isfinite(spec.scale)) return Bad(where, "attribute 'scale' is {}; needs a finite number", spec.scale);
  if (!std::isfinite(spec.softcap) || spec.softcap < 0)
    return Bad(where, "attribute 'softcap' is {}; needs a finite number >= 0", spec.softcap);
  if (spec.window_left < kUnlimited || spec.window_right < kUnlimited)
    return Bad(where, "window is ({}, {}); needs -1 (unlimited) or more on each side", spec.window_left,
               spec.window_right);
  if (spec.head_sink != nullptr && !IsFloat(spec.head_sink_type))
    return Bad(where, "input 'head_sink' has type {}; needs f32, f16 or bf16", NameOf(spec.head_sink_type));
  return {};
}

Status CheckPositions(const AttentionCall& call, std::string_view where) {
  for (int64_t b = 0; b < call.query.batch; ++b)
    if (call.positions.query_position != nullptr &&
        (call.positions.query_position[b] < -kMaxTokens || call.positions.query_position[b] > kMaxTokens))
      return Bad(where, "position of query row 0 of batch {} is {}; needs a magnitude of at most {}", b,
                 call.positions.query_position[b], kMaxTokens);
  if (call.key_mask) {
    const DType type = call.key_mask.type;
    if (type != DType::kI64 && type != DType::kI32 && type != DType::kBool)
      return Bad(where, "input 'key_mask' has type {}; needs int64, int32 or bool", NameOf(type));
    if (call.key.tokens < call.query.tokens)
      return Bad(where, "input 'key_mask' has T = {} columns; needs at least the S = {} new tokens", call.key.tokens,
                 call.query.tokens);
    return {};
  }
  for (int64_t b = 0; b < call.query.batch; ++b) {
    if (call.positions.length != nullptr &&
        (call.positions.length[b] < 0 || call.positions.length[b] > call.key.tokens))
      return Bad(where, "length[{}] is {}; needs 0 to {}, the rows of 'key'", b, call.positions.length[b],
                 call.key.tokens);
    if (call.positions.query_length != nullptr &&
        (call.positions.query_length[b] < 0 || call.positions.query_length[b] > call.query.tokens))
      return Bad(where, "query length of batch {} is {}; needs 0 to S = {}", b, call.positions.query_length[b],
                 call.query.tokens);
  }
  return {};
}

Status CheckMask(const AttentionCall& call, std::string_view where) {
  if (!call.mask) return {};
  const DType type = call.mask.type;
  if (type != DType::kBool && !IsFloat(type) && (type != DType::kF64 || call.query.type != DType::kF64))
    return Bad(where, "mask has type {}; needs bool, f32, f16 or bf16 (f64 with f64 'query')", NameOf(type));
  if (call.mask.keys < 0) return Bad(where, "mask has {} columns; needs 0 or more", call.mask.keys);
  for (int64_t b = 0; b < call.query.batch; ++b)
    if (call.mask.FirstColumn(b) < 0 || call.mask.FirstColumn(b) > call.mask.keys)
      return Bad(where, "mask of batch {} begins in column {}; needs 0 to {}", b, call.mask.FirstColumn(b),
                 call.mask.keys);
  return {};
}

Status CheckScores(const AttentionCall& call, std::string_view where) {
  const MutableScoresView& scores = call.scores;
  if (!scores) return {};
  const bool served = call.query.type == DType::kF64 ? scores.type == DType::kF64 : IsFloat(scores.type);
  if (!served)
    return Bad(where, "scores have type {}; needs f32, f16 or bf16 (f64 with f64 'query')", NameOf(scores.type));
  if (call.key_mask && !std::isinf(scores.outside))
    return Bad(where, "scores show keys outside as {} beside 'key_mask'; needs -inf, as for its zeros", scores.outside);
  if (scores.OfEveryKey() && (scores.keys != call.key.tokens || scores.first_column != nullptr))
    return Bad(where, "scores of every key have {} columns; needs {}, the rows of 'key'", scores.keys, call.key.tokens);
  for (int64_t b = 0; b < call.query.batch; ++b) {
    const int64_t first = scores.FirstColumn(b);
    if (first < 0 || first > scores.keys)
      return Bad(where, "scores of batch {} begin in column {}; needs 0 to {}", b, first, scores.keys);
    const bool bounded = call.positions.length != nullptr && !call.key_mask;
    const int64_t count = bounded ? call.positions.length[b] : call.key.tokens;
    if (count > scores.keys - first)
      return Bad(where, "scores have {} columns; needs {} for the keys of batch {}", scores.keys,
                 static_cast<uint64_t>(first) + static_cast<uint64_t>(count), b);  // of two numbers that int64 holds
  }
  return {};
}

// `first` is the position of row 0 of each sequence where `positions` is null; it has been checked.
Status CheckRotary(const RotaryView& rotary, DType data_type, const int64_t* positions, const int64_t* first,
                   int64_t batch, int64_t tokens, int64_t head_size, std::string_view where) {
  if (!rotary) return {};
  if (rotary.sin == nullptr) return Bad(where, "input 'sin_cache' is absent; needs the shape of 'cos_cache'");
  if (!IsFloat(rotary.type) && (rotary.type != DType::kF64 || data_type != DType::kF64))
    return Bad(where, "input 'cos_cache' has type {}; needs f32, f16 or bf16 (f64 with f64 data)", NameOf(rotary.type));
  if (rotary.half <= 0 || rotary.half > head_size / 2)
    return Bad(where, "input 'cos_cache' has {} columns; needs 1 to {}, half the head size {}", rotary.half,
               head_size / 2, head_size);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t s = 0; s < tokens; ++s) {
      const int64_t position = positions != nullptr ? positions[b * tokens + s] : (first != nullptr ? first[b] : 0) + s;
      if (position < 0 || position >= rotary.max_positions)
        return Bad(where, "position of token {} of batch {} is {}; needs 0 to {}, the rows of 'cos_cache'", s, b,
                   position, rotary.max_positions - 1);
    }
  return {};
}

Status CheckNamedAppend(const AppendCall& call, const AppendNames& names, std::string_view where) {
  const MutableHeadsView& present = call.present;
  const HeadsView& fresh = call.fresh;
  KVSHARE_RETURN_IF_ERROR(CheckView(fresh, names.fresh, where));
  KVSHARE_RETURN_IF_ERROR(CheckView(present, names.present, where));
  if (fresh.batch != present.batch || fresh.heads != present.heads || fresh.head_size != present.head_size)
    return Bad(where, "new rows have shape {}; need B, heads and D of the present {}", ShapeOf(fresh),
               ShapeOf(present));
  const HeadsView& past = call.past;
  if (past) {
    KVSHARE_RETURN_IF_ERROR(CheckView(past, names.past, where));
    if (past.batch != present.batch || past.heads != present.heads || past.head_size != present.head_size)
      return Bad(where, "input '{}' has shape {}; needs B, heads and D of the present {}", names.past, ShapeOf(past),
                 ShapeOf(present));
    if (past.type != present.type)
      return Bad(where, "input '{}' has type {}; needs {} like the present", names.past, NameOf(past.type),
                 NameOf(present.type));
  }
  // f64 is appended by the oracle, to f64; the rest mixes.
  const bool served =
      fresh.type == DType::kF64 || present.type == DType::kF64
          ? fresh.type == present.type
          : (IsFloat(fresh.type) || IsQuantized(fresh.type)) && (IsFloat(present.type) || IsQuantized(present.type));
  if (!served)
    return Status::Refused(fmt::format(
        "{}: no kernel that appends {} to {}; have f32, f16 and bf16 to those, int8, int4 and float8e4m3fn, and "
        "f64 to f64",
        where, NameOf(fresh.type), NameOf(present.type)));
  KVSHARE_RETURN_IF_ERROR(CheckQuant(present, "present", where));
  if (past) KVSHARE_RETURN_IF_ERROR(CheckQuant(past, "past", where));
  if (IsQuantized(fresh.type) && (fresh.tokens > 0 || fresh.type != present.type))
    return Bad(where, "new rows have type {}; need f32, f16 or bf16", NameOf(fresh.type));
  for (int64_t b = 0; b < present.batch; ++b) {
    const int64_t begin = call.past_length != nullptr ? call.past_length[b] : 0;
    if (begin < 0 || (begin > 0 && (!past || begin > past.tokens)))
      return Bad(where, "past length of batch {} is {}; needs 0 to {}, the rows of 'past'", b, begin,
                 past ? past.tokens : 0);
    const int64_t most = begin + fresh.tokens;
    const int64_t skip = call.skip != nullptr ? call.skip[b] : 0;
    if (skip < 0 || skip > most) return Bad(where, "rows dropped of batch {} are {}; needs 0 to {}", b, skip, most);
    // At least what is left of past, at most that and the new rows.
    const int64_t length = call.length != nullptr ? call.length[b] : most - skip;
    if (length < std::max<int64_t>(begin - skip, 0) || length > most - skip || length > present.tokens)
      return Bad(where, "length of batch {} is {}; needs {} to {} (past {} + {} new, capacity {})", b, length,
                 std::max<int64_t>(begin - skip, 0), std::min(most - skip, present.tokens), begin, fresh.tokens,
                 present.tokens);
  }
  KVSHARE_RETURN_IF_ERROR(CheckOwnMemory(call, names, where));
  KVSHARE_RETURN_IF_ERROR(CheckNorm(call.norm, fresh.type, where));
  return CheckRotary(call.rotary, present.type, call.rotary_positions, call.past_length, present.batch, fresh.tokens,
                     present.head_size, where);
}

}  // namespace

Status CheckAttention(const AttentionCall& call, std::string_view where) {
  KVSHARE_RETURN_IF_ERROR(CheckShapes(call, where));
  KVSHARE_RETURN_IF_ERROR(CheckTypes(call, where));
  KVSHARE_RETURN_IF_ERROR(CheckSpec(call.spec, where));
  KVSHARE_RETURN_IF_ERROR(CheckPositions(call, where));
  KVSHARE_RETURN_IF_ERROR(CheckMask(call, where));
  KVSHARE_RETURN_IF_ERROR(CheckNorm(call.norm, call.query.type, where));
  KVSHARE_RETURN_IF_ERROR(CheckScores(call, where));
  return CheckRotary(call.rotary, call.query.type, call.rotary_positions, call.positions.query_position,
                     call.query.batch, call.query.tokens, call.query.head_size, where);
}

Status CheckAppend(const AppendCall& call, std::string_view where) { return CheckNamedAppend(call, {}, where); }

Status CheckAppend(const AppendCall& key, const AppendCall& value, std::string_view where, std::string_view past) {
  const auto names = [&](const char* what) {
    return AppendNames{fmt::format("{}_{}", past, what), what, fmt::format("present_{}", what)};
  };
  KVSHARE_RETURN_IF_ERROR(CheckNamedAppend(key, names("key"), where));
  KVSHARE_RETURN_IF_ERROR(CheckNamedAppend(value, names("value"), where));
  return CheckApart(key, names("key"), value, names("value"), where);
}

}  // namespace kvshare
