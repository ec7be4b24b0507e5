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
#include <limits>

namespace kvshare {

// kI8, kI4 and kF8E4M3 are codes of a quantized cache (see Quant). kI4 packs two a byte, the even channel in the low
// nibble, each stored as code + 8; a row of them starts on a byte.
enum class DType : uint8_t { kF32, kF16, kBF16, kF64, kBool, kI32, kI64, kI8, kI4, kF8E4M3 };

constexpr bool IsFloat(DType type) { return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16; }
constexpr bool IsQuantized(DType type) { return type == DType::kI8 || type == DType::kI4 || type == DType::kF8E4M3; }

// Bytes of one element; of a pair for kI4.
constexpr size_t SizeOf(DType type) {
  switch (type) {
    case DType::kF64:
    case DType::kI64: return 8;
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kF16:
    case DType::kBF16: return 2;
    case DType::kBool:
    case DType::kI8:
    case DType::kI4:
    case DType::kF8E4M3: return 1;
  }
  return 0;
}

// Elements from one row of `head_size` channels to the next in contiguous memory.
constexpr int64_t RowElements(DType type, int64_t head_size) {
  return type == DType::kI4 ? head_size + head_size % 2 : head_size;
}

// Bytes of `elements` contiguous elements.
constexpr int64_t BytesOf(DType type, int64_t elements) {
  return type == DType::kI4 ? (elements + 1) / 2 : elements * static_cast<int64_t>(SizeOf(type));
}

// "f32", "bf16", ...: the spelling of error messages.
const char* NameOf(DType type);

// The scales of a quantized cache: a code stands for code * scale[0], or code * scale[head * D + d] where per_channel.
struct Quant {
  const float* scale = nullptr;
  bool per_channel = false;

  float At(int64_t head, int64_t head_size, int64_t d) const { return scale[per_channel ? head * head_size + d : 0]; }
};

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
  Quant quant = {};  // where the type is a quantized one

  // A contiguous [B, heads, tokens, D] tensor.
  static BasicHeadsView Bnsh(Pointer data, DType type, int64_t batch, int64_t heads, int64_t tokens,
                             int64_t head_size) {
    const int64_t row = RowElements(type, head_size);
    return {data, type, batch, heads, tokens, head_size, heads * tokens * row, tokens * row, row};
  }
  // A contiguous [B, tokens, heads, D] (or [B, tokens, heads*D]) tensor.
  static BasicHeadsView Bsnh(Pointer data, DType type, int64_t batch, int64_t tokens, int64_t heads,
                             int64_t head_size) {
    const int64_t row = RowElements(type, head_size);
    return {data, type, batch, heads, tokens, head_size, tokens * heads * row, row, heads * row};
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
  return {v.data,      v.type,         v.batch,       v.heads,        v.tokens,
          v.head_size, v.batch_stride, v.head_stride, v.token_stride, v.quant};
}

// A mask or bias over (b, head, query, key): element at data + b*batch_stride + head*head_stride + query*query_stride +
// key*key_stride. A broadcast extent has stride 0. kBool: true keeps, false hides. Floats: added to the score after
// scale and softcap; -inf hides. Columns at or past `keys` are hidden. Key 0 stands in column Positions::first_column.
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

// Per-head RMS normalization: x * weight / sqrt(mean(x^2) + epsilon), weight [D].
struct NormView {
  const void* weight = nullptr;
  DType type = DType::kF32;
  float epsilon = 1e-6F;

  explicit operator bool() const { return weight != nullptr; }
};

// The stages of a score on its way to a weight.
enum class ScoreStage : uint8_t {
  kRaw,         // scale * q.k, of every key, visible or not
  kSoftcapped,  // after softcap, of every key
  kMasked,      // after the bias, or hidden
  kWeights,     // after the softmax: 0 for a hidden key; a sink has its share of the 1
};

// The scores of a call, contiguous [B, Hq, S, keys]: that of key 0 stands in column Positions::first_column. The two
// stages of every key read all of K's rows, and have T columns.
struct MutableScoresView {
  void* data = nullptr;
  DType type = DType::kF32;
  ScoreStage stage = ScoreStage::kRaw;
  int64_t keys = 0;
  // kMasked: of keys at or past the length and outside the window. Those that a mask hides hold -inf in any case.
  float outside = -std::numeric_limits<float>::infinity();

  explicit operator bool() const { return data != nullptr; }
  bool OfEveryKey() const { return stage == ScoreStage::kRaw || stage == ScoreStage::kSoftcapped; }
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
