// The alphabet and the views. Everything the kernels see of a tensor is here.
//
//   B  batch                  Hq   query heads            D   head size of query and key
//   S  new tokens (queries)   Hkv  key-value heads        Dv  head size of value (D unless said)
//   T  past + new tokens      G    = Hq / Hkv, the query heads that share one key-value head
//
// Layout names are ONNX Runtime's: BNSH is [B, heads, tokens, D], BSNH is [B, tokens, heads, D], and a "3-D" tensor
// [B, tokens, heads*D] is BSNH with its last two extents folded. Ranges are half-open [begin, end); strides count
// elements; sizes in bytes say `_bytes`.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvshare {

enum class DType : uint8_t { kF32, kF16, kBF16, kF64, kBool, kI32, kI64 };

constexpr size_t SizeOf(DType type) {
  switch (type) {
    case DType::kF64:
    case DType::kI64: return 8;
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kF16:
    case DType::kBF16: return 2;
    case DType::kBool: return 1;
  }
  return 0;
}

// "f32", "bf16", ...: the spelling of error messages.
const char* NameOf(DType type);

// A tensor of heads: element (b, head, token, d) lies at
//   data + b*batch_stride + head*head_stride + token*token_stride + d        (in elements; d is contiguous)
// so that BNSH, BSNH, packed QKV, a static cache and a window of one are all the same view. Never owns its memory.
template <typename Pointer>
struct BasicHeadsView {
  Pointer data = nullptr;
  DType type = DType::kF32;
  int64_t batch = 0;      // B
  int64_t heads = 0;      // Hq or Hkv
  int64_t tokens = 0;     // S for queries, T (or the cache's capacity) for keys and values
  int64_t head_size = 0;  // D or Dv
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t token_stride = 0;

  // A contiguous [B, heads, tokens, D] tensor.
  static BasicHeadsView Bnsh(Pointer data, DType type, int64_t batch, int64_t heads, int64_t tokens,
                             int64_t head_size) {
    return {data, type, batch, heads, tokens, head_size, heads * tokens * head_size, tokens * head_size, head_size};
  }
  // A contiguous [B, tokens, heads, D] (or [B, tokens, heads*D]) tensor.
  static BasicHeadsView Bsnh(Pointer data, DType type, int64_t batch, int64_t tokens, int64_t heads,
                             int64_t head_size) {
    return {data, type, batch, heads, tokens, head_size, tokens * heads * head_size, head_size, heads * head_size};
  }

  explicit operator bool() const { return data != nullptr; }
  // Offset in elements of (b, head, token, 0).
  int64_t Offset(int64_t b, int64_t head, int64_t token) const {
    return b * batch_stride + head * head_stride + token * token_stride;
  }
};

using HeadsView = BasicHeadsView<const void*>;
using MutableHeadsView = BasicHeadsView<void*>;

inline HeadsView Const(const MutableHeadsView& v) {
  return {v.data, v.type, v.batch, v.heads, v.tokens, v.head_size, v.batch_stride, v.head_stride, v.token_stride};
}

// A mask or bias over (b, head, query, key): element at data + b*batch_stride + head*head_stride + query*query_stride +
// key*key_stride. A broadcast extent has stride 0. kBool: true keeps, false hides. Floats: added to the score after
// scale and softcap; -inf hides. Keys at or past `keys` are hidden.
struct MaskView {
  const void* data = nullptr;
  DType type = DType::kBool;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t query_stride = 0;
  int64_t key_stride = 0;
  int64_t keys = 0;

  explicit operator bool() const { return data != nullptr; }
};

// Hugging Face's attention_mask [B, T] (kI64, kI32 or kBool; nonzero keeps), which also numbers the positions: that of
// a key is its running count of ones. See AttentionCall::key_mask.
struct KeyMaskView {
  const void* data = nullptr;
  DType type = DType::kI64;
  int64_t batch_stride = 0;  // = T where contiguous

  explicit operator bool() const { return data != nullptr; }
};

// Tables of the rotary embedding, [max_positions, half] each; the first 2*half channels of a head are rotated.
struct RotaryView {
  const void* cos = nullptr;
  const void* sin = nullptr;
  DType type = DType::kF32;
  int64_t max_positions = 0;
  int64_t half = 0;          // <= D / 2
  bool interleaved = false;  // pairs (2i, 2i+1) instead of (i, i+half)

  explicit operator bool() const { return cos != nullptr; }
};

}  // namespace kvshare
