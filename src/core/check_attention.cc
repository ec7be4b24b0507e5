// The only judge of shapes. Reads extents and types; never a number or an element, which check_numbers.cc does where
// the host may.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/check.h"
#include "core/shared_memory.h"
#include "kvshare/call.h"

namespace kvshare {
namespace {

template <typename View>
std::string ShapeOf(const View& v) {
  return fmt::format("[B {}, heads {}, tokens {}, D {}]", v.batch, v.heads, v.tokens, v.head_size);
}

template <typename View>
Status CheckView(const View& v, std::string_view name, std::string_view where) {
  if (v.batch < 0 || v.heads <= 0 || v.tokens < 0 || v.head_size <= 0)
    return BadCall(where, "input '{}' has shape {}; needs B and tokens >= 0, heads and D > 0", name, ShapeOf(v));
  if (v.tokens > kMaxTokens)
    return BadCall(where, "input '{}' has {} tokens; needs at most {}", name, v.tokens, kMaxTokens);
  if (v.data == nullptr && v.batch > 0 && v.tokens > 0)
    return BadCall(where, "input '{}' is absent; needs {}", name, ShapeOf(v));
  return {};
}

// A quantized type goes with scales, and with nothing else.
template <typename View>
Status CheckQuant(const View& v, std::string_view name, std::string_view where) {
  if (IsQuantized(v.type) == (v.quant.scale != nullptr)) return {};
  return BadCall(where,
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
    return BadCall(where, "norm weight has type {}; needs f32, f16 or bf16 (f64 with f64 data)", NameOf(norm.type));
  if (!std::isfinite(norm.epsilon) || norm.epsilon <= 0)
    return BadCall(where, "norm epsilon is {}; needs a finite number above 0", norm.epsilon);
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
    return BadCall(where, "input 'key' has B = {} (shape {}); needs B = {} like 'query'", k.batch, ShapeOf(k), q.batch);
  if (v.batch != q.batch)
    return BadCall(where, "input 'value' has B = {} (shape {}); needs B = {} like 'query'", v.batch, ShapeOf(v),
                   q.batch);
  if (k.head_size != q.head_size)
    return BadCall(where, "input 'key' has D = {} (shape {}); needs D = {} like 'query'", k.head_size, ShapeOf(k),
                   q.head_size);
  if (v.heads != k.heads) return BadCall(where, "input 'value' has {} heads; needs {} like 'key'", v.heads, k.heads);
  if (v.tokens != k.tokens)
    return BadCall(where, "input 'value' has {} tokens; needs {} like 'key'", v.tokens, k.tokens);
  if (q.heads % k.heads != 0)
    return BadCall(where, "input 'query' has {} heads; needs a multiple of the {} heads of 'key'", q.heads, k.heads);
  const MutableHeadsView& o = call.output;
  if (o.batch != q.batch || o.heads != q.heads || o.tokens != q.tokens || o.head_size != v.head_size)
    return BadCall(where, "output has shape {}; needs [B {}, heads {}, tokens {}, D {}]", ShapeOf(o), q.batch, q.heads,
                   q.tokens, v.head_size);
  return {};
}

Status CheckSpec(const AttentionSpec& spec, std::string_view where) {
  if (!std::isfinite(spec.scale)) return BadCall(where, "attribute 'scale' is {}; needs a finite number", spec.scale);
  if (!std::isfinite(spec.softcap) || spec.softcap < 0)
    return BadCall(where, "attribute 'softcap' is {}; needs a finite number >= 0", spec.softcap);
  if (spec.window_left < kUnlimited || spec.window_right < kUnlimited)
    return BadCall(where, "window is ({}, {}); needs -1 (unlimited) or more on each side", spec.window_left,
                   spec.window_right);
  if (spec.head_sink != nullptr && !IsFloat(spec.head_sink_type))
    return BadCall(where, "input 'head_sink' has type {}; needs f32, f16 or bf16", NameOf(spec.head_sink_type));
  return {};
}

Status CheckKeyMask(const AttentionCall& call, std::string_view where) {
  if (!call.key_mask) return {};
  const DType type = call.key_mask.type;
  if (type != DType::kI64 && type != DType::kI32 && type != DType::kBool)
    return BadCall(where, "input 'key_mask' has type {}; needs int64, int32 or bool", NameOf(type));
  if (call.key.tokens < call.query.tokens)
    return BadCall(where, "input 'key_mask' has T = {} columns; needs at least the S = {} new tokens", call.key.tokens,
                   call.query.tokens);
  return {};
}

// `rows`: those that key, or present, has.
Status CheckWindowCache(const WindowCache& cache, int64_t rows, std::string_view where) {
  if (!cache) return {};
  if (cache.window < 1) return BadCall(where, "window of the cache is {}; needs 1 or more", cache.window);
  const int64_t most = cache.staged ? kMaxTokens : rows;
  if (cache.capacity >= cache.window && cache.capacity <= most) return {};
  return BadCall(where, "window-sized cache has {} rows; needs {} to {}, its window and the rows that there are",
                 cache.capacity, cache.window, most);
}

Status CheckMask(const AttentionCall& call, std::string_view where) {
  if (!call.mask) return {};
  const DType type = call.mask.type;
  if (type != DType::kBool && !IsFloat(type) && (type != DType::kF64 || call.query.type != DType::kF64))
    return BadCall(where, "mask has type {}; needs bool, f32, f16 or bf16 (f64 with f64 'query')", NameOf(type));
  if (call.mask.keys < 0) return BadCall(where, "mask has {} columns; needs 0 or more", call.mask.keys);
  return {};
}

Status CheckScores(const AttentionCall& call, std::string_view where) {
  const MutableScoresView& scores = call.scores;
  if (!scores) return {};
  const bool served = call.query.type == DType::kF64 ? scores.type == DType::kF64 : IsFloat(scores.type);
  if (!served)
    return BadCall(where, "scores have type {}; needs f32, f16 or bf16 (f64 with f64 'query')", NameOf(scores.type));
  if (call.key_mask && !std::isinf(scores.outside))
    return BadCall(where, "scores show keys outside as {} beside 'key_mask'; needs -inf, as for its zeros",
                   scores.outside);
  if (scores.OfEveryKey() && (scores.keys != call.key.tokens || call.positions.first_column))
    return BadCall(where, "scores of every key have {} columns; needs {}, the rows of 'key'", scores.keys,
                   call.key.tokens);
  return {};
}

Status CheckRotary(const RotaryView& rotary, DType data_type, int64_t head_size, std::string_view where) {
  if (!rotary) return {};
  if (rotary.sin == nullptr) return BadCall(where, "input 'sin_cache' is absent; needs the shape of 'cos_cache'");
  if (!IsFloat(rotary.type) && (rotary.type != DType::kF64 || data_type != DType::kF64))
    return BadCall(where, "input 'cos_cache' has type {}; needs f32, f16 or bf16 (f64 with f64 data)",
                   NameOf(rotary.type));
  if (rotary.half <= 0 || rotary.half > head_size / 2)
    return BadCall(where, "input 'cos_cache' has {} columns; needs 1 to {}, half the head size {}", rotary.half,
                   head_size / 2, head_size);
  return {};
}

Status CheckNamedAppend(const AppendCall& call, const AppendNames& names, std::string_view where) {
  const MutableHeadsView& present = call.present;
  const HeadsView& fresh = call.fresh;
  KVSHARE_RETURN_IF_ERROR(CheckView(fresh, names.fresh(), where));
  KVSHARE_RETURN_IF_ERROR(CheckView(present, names.present(), where));
  if (fresh.batch != present.batch || fresh.heads != present.heads || fresh.head_size != present.head_size)
    return BadCall(where, "new rows have shape {}; need B, heads and D of the present {}", ShapeOf(fresh),
                   ShapeOf(present));
  const HeadsView& past = call.past;
  if (past) {
    KVSHARE_RETURN_IF_ERROR(CheckView(past, names.past(), where));
    if (past.batch != present.batch || past.heads != present.heads || past.head_size != present.head_size)
      return BadCall(where, "input '{}' has shape {}; needs B, heads and D of the present {}", names.past(),
                     ShapeOf(past), ShapeOf(present));
    if (past.type != present.type)
      return BadCall(where, "input '{}' has type {}; needs {} like the present", names.past(), NameOf(past.type),
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
    return BadCall(where, "new rows have type {}; need f32, f16 or bf16", NameOf(fresh.type));
  KVSHARE_RETURN_IF_ERROR(CheckWindowCache(call.cache, present.tokens, where));
  KVSHARE_RETURN_IF_ERROR(CheckOwnMemory(call, names, where));
  KVSHARE_RETURN_IF_ERROR(CheckNorm(call.norm, fresh.type, where));
  KVSHARE_RETURN_IF_ERROR(CheckRotary(call.rotary, present.type, present.head_size, where));
  return CheckNumbers(call, where);
}

}  // namespace

Status CheckAttention(const AttentionCall& call, std::string_view where) {
  KVSHARE_RETURN_IF_ERROR(CheckShapes(call, where));
  KVSHARE_RETURN_IF_ERROR(CheckTypes(call, where));
  KVSHARE_RETURN_IF_ERROR(CheckSpec(call.spec, where));
  KVSHARE_RETURN_IF_ERROR(CheckKeyMask(call, where));
  KVSHARE_RETURN_IF_ERROR(CheckWindowCache(call.positions.cache, call.key.tokens, where));
  KVSHARE_RETURN_IF_ERROR(CheckMask(call, where));
  KVSHARE_RETURN_IF_ERROR(CheckNorm(call.norm, call.query.type, where));
  KVSHARE_RETURN_IF_ERROR(CheckScores(call, where));
  KVSHARE_RETURN_IF_ERROR(CheckRotary(call.rotary, call.query.type, call.query.head_size, where));
  return CheckNumbers(call, where);
}

Status CheckAppend(const AppendCall& call, std::string_view where) { return CheckNamedAppend(call, {}, where); }

Status CheckAppend(const AppendCall& key, const AppendCall& value, std::string_view where, std::string_view past) {
  const AppendNames key_names = {"key", past};
  const AppendNames value_names = {"value", past};
  KVSHARE_RETURN_IF_ERROR(CheckNamedAppend(key, key_names, where));
  KVSHARE_RETURN_IF_ERROR(CheckNamedAppend(value, value_names, where));
  return CheckApart(key, key_names, value, value_names, where);
}

}  // namespace kvshare
