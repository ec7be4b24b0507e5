// What one call of the attention core computes, as plain views, and the judge of such calls. Knows neither ONNX Runtime
// nor ONNX. Who computes it: attend.h in f32 with SIMD, oracle.h in double.
//
//   AttentionCall call;                       // fill the views and the spec
//   KVSHARE_RETURN_IF_ERROR(CheckAttention(call, "GroupQueryAttention 'layers.15/attn'"));
//   KVSHARE_RETURN_IF_ERROR(Attend(call, parallel, pool));
#pragma once

#include <atomic>
#include <cstdint>
#include <string_view>

#include "kvshare/lengths.h"
#include "kvshare/shapes.h"
#include "kvshare/status.h"

namespace kvshare {

inline constexpr int64_t kUnlimited = -1;

// What one attention computes. For query row s of sequence b at position p = query_position[b] + s, key j takes part
// iff
//   j < length[b],  p - j <= window_left (if limited),  j - p <= window_right (if limited),
//   and neither key_mask nor mask hides it.
// The score is  x = scale * q.k;  x = softcap * tanh(x / softcap) if softcap > 0;  x += bias.
// A row that sees no key gives zeros.
struct AttentionSpec {
  double scale = 1.0;                 // the kernels round it to f32
  float softcap = 0.0F;               // 0: off
  int64_t window_left = kUnlimited;   // keys before the query's own; ORT's local_window_size W is window_left = W - 1
  int64_t window_right = kUnlimited;  // 0: causal
  bool smooth_softmax = false;        // one more key of score 0 and no value
  const void* head_sink = nullptr;    // [Hq] scores of that one more key, instead of 0; implies smooth_softmax
  DType head_sink_type = DType::kF32;
};

// Where the keys and queries of each sequence stand.
struct Positions {
  Lengths length = {};          // valid keys; default T for all; CheckAttention refuses more than T
  Lengths query_position = {};  // of query row 0 on the keys' axis; default 0; may be negative, or Lengths::AtEnd()
  Lengths query_length = {};    // query rows that are tokens, default S; later ones are padding, and give zeros
  Lengths first_column = {};    // of mask and scores: the column of key 0; default 0, or what `cache` has dropped
  WindowCache cache = {};
};

// One call. Rows of key and value at or past a sequence's length, and all rows no query sees, are never read.
struct AttentionCall {
  HeadsView query;          // [B, Hq, S, D]   f32, f16, bf16 (AttendOracle: also f64)
  HeadsView key;            // [B, Hkv, T, D]       the same, or a quantized type with its Quant
  HeadsView value;          // [B, Hkv, T, Dv]
  MutableHeadsView output;  // [B, Hq, S, Dv]  written in full
  AttentionSpec spec;
  Positions positions;
  // Optional. Attend does not read the keys that it hides before the first and behind the last that a row sees: a
  // window that is written as a mask costs what a window costs. There floats of -6e4 and below count as hiding, if the
  // row has one of -3e4 or more.
  MaskView mask;
  // Optional. With it positions are ignored, but for first_column: pos(k) is the running count of ones up to and with
  // k, query s has the position of column T-S+s, key k is visible iff its mask is set, pos(q) - pos(k) <= window_left
  // and pos(k) - pos(q) <= window_right. Right and left padding and holes are all expressed by it.
  KeyMaskView key_mask;
  // Optional: the query is normalized, then rotated, while it is loaded (the source tensor is not written).
  NormView norm;
  RotaryView rotary;
  RotaryPositions rotary_positions;  // default query_position[b] + s; padding takes row 0 of the tables
  // Optional: what the softmax is made of, or what it made, for who wants to look at it; K is read once or twice more.
  MutableScoresView scores;
  // Optional: adds the number of (kv head, token) rows of K that were read, counted once per unit of work.
  std::atomic<int64_t>* key_rows_read = nullptr;
};

// New tokens of an own layer on their way into the cache. Where the present is quantized they are quantized on the way
// (to the nearest code, ties to even); past has present's type and scales.
struct AppendCall {
  // [B, H, capacity, D]; null: nothing before. With present's data and strides: appended in place. Otherwise present's
  // memory is its own.
  HeadsView past;
  HeadsView fresh;           // [B, H, S, D] new rows, f32, f16 or bf16
  MutableHeadsView present;  // [B, H, capacity', D], capacity' >= every length
  // Rows of past that are valid; the new rows follow them. Default 0; Lengths::AtEnd() is length - fresh_length.
  Lengths past_length;
  Lengths fresh_length;  // new rows that are tokens, the first ones; default S
  // Valid rows of present afterwards; rows [length, capacity') are zeroed unless in place. Default past_length + S less
  // skip.
  Lengths length;
  Lengths skip;  // rows dropped from the front: row t of present is row t + skip[b] of past and new rows; default 0
  WindowCache cache;                 // instead of skip
  NormView norm;                     // null for values
  RotaryView rotary;                 // null for values; after norm
  RotaryPositions rotary_positions;  // default past_length[b] + s
};

// The only judge of shapes: every extent and type of `call`, and the lengths and positions that lie in host memory,
// before any tensor element is read. Those in a device's memory are for that device to clamp. `where` opens the
// message:
// "<op> '<node>'". Returns kInvalidInput with input, value and want; kRefused for a type the kernels lack.
Status CheckAttention(const AttentionCall& call, std::string_view where);
Status CheckAppend(const AppendCall& call, std::string_view where);
// The two appends of one call, of its keys and of its values: also that neither writes where the other reads or writes.
// Messages name '<past>_key', 'key', 'present_key' and those of the value.
Status CheckAppend(const AppendCall& key, const AppendCall& value, std::string_view where,
                   std::string_view past = "past");

}  // namespace kvshare
