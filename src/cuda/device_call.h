// One call as a CUDA kernel gets it: plain data that travels by value. Every pointer is a device pointer, and the host
// reads no memory through it. The letters are those of shapes.h.
#pragma once

#include <cstdint>
#include <limits>

#include "kvshare/shapes.h"

namespace kvshare::cuda {

// One number a sequence, whose values may lie on the device: clamp(data[b] + add, least, most), or clamp(add, ...)
// where data is null. The clamp stands for the check that no host can make.
struct DeviceNumbers {
  const void* data = nullptr;  // [B] int32, or int64
  bool is_int64 = false;
  int64_t add = 0;
  int64_t least = 0;
  int64_t most = std::numeric_limits<int32_t>::max();

  static DeviceNumbers Same(int64_t value) { return {nullptr, false, value, value, value}; }
};

// Element (b, head, token, d) lies at data + b*batch_stride + head*head_stride + token*token_stride + d, in elements.
struct DeviceHeads {
  const void* data = nullptr;
  DType type = DType::kF32;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t token_stride = 0;
  const float* quant_scale = nullptr;  // codes: [1], or [heads, D] where per channel
  bool quant_per_channel = false;
};

struct DeviceOutput {
  void* data = nullptr;
  DType type = DType::kF32;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t token_stride = 0;
  const float* quant_scale = nullptr;
  bool quant_per_channel = false;
};

// MutableScoresView: contiguous [B, Hq, S, keys].
struct DeviceScores {
  void* data = nullptr;
  DType type = DType::kF32;
  ScoreStage stage = ScoreStage::kRaw;
  int64_t keys = 0;
  float outside = 0;
};

// How a row of channels changes before it is used: a norm (NormView), then a rotation (RotaryView).
struct DeviceRow {
  const void* norm_weight = nullptr;  // [D]
  DType norm_type = DType::kF32;
  float norm_epsilon = 0;
  const void* cos = nullptr;  // [max_positions, half]
  const void* sin = nullptr;
  DType rotary_type = DType::kF32;
  int64_t max_positions = 0;
  int32_t half = 0;
  bool interleaved = false;
  const int64_t* positions = nullptr;  // [B, tokens]; null: row 0's position and those that follow it
  bool same_start = false;             // positions[0] + token for every sequence, instead
};

// AttentionCall.
struct DeviceAttention {
  int32_t B = 0, Hq = 0, Hkv = 0, S = 0, T = 0, D = 0, Dv = 0;
  DeviceHeads query;
  DeviceHeads key;
  DeviceHeads value;
  DeviceOutput output;
  float scale = 1;
  float softcap = 0;                // 0: off
  int64_t window_left = -1;         // -1: unlimited
  int64_t window_right = -1;        // -1: unlimited
  bool has_sink = false;            // one more key of score head_sink[head], or 0 where null
  const void* head_sink = nullptr;  // [Hq]
  DType head_sink_type = DType::kF32;
  DeviceNumbers length;                                 // valid keys
  DeviceNumbers query_position;                         // of row 0
  DeviceNumbers query_length;                           // rows that are tokens
  DeviceNumbers first_column = DeviceNumbers::Same(0);  // of mask and scores: the column of key 0
  MaskView mask;
  const void* key_mask = nullptr;  // KeyMaskView [B, T]
  DType key_mask_type = DType::kI64;
  int64_t key_mask_stride = 0;
  // What CountKeysKernel finds in a key mask, in scratch memory.
  int32_t* key_counts = nullptr;  // [B, T] how many keys are kept up to key j; of a hidden key, its complement
  int32_t* kept_keys = nullptr;   // [B, T] the keys that are kept, in order
  DeviceRow query_row;
  DeviceScores scores;
};

// AppendCall.
struct DeviceAppend {
  int32_t B = 0, H = 0, S = 0, D = 0;
  int64_t past_tokens = 0;  // capacities
  int64_t present_tokens = 0;
  bool in_place = false;  // past has present's memory
  DeviceHeads past;       // data null: none
  DeviceHeads fresh;
  DeviceOutput present;
  DeviceNumbers past_length = DeviceNumbers::Same(0);
  DeviceNumbers length;
  DeviceNumbers skip = DeviceNumbers::Same(0);
  DeviceRow fresh_row;
  DeviceNumbers rotary_start = DeviceNumbers::Same(0);  // position of new row 0 in the sequence
};

}  // namespace kvshare::cuda
