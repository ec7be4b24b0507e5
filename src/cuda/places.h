// The rules of a call's lengths as a kernel takes them, and where it writes what they come to.
#pragma once

#include <cstdint>

#include "cuda/device_call.h"
#include "kvshare/lengths.h"

namespace kvshare::cuda {

struct DeviceRules {
  int32_t B = 0, S = 0;
  DeviceNumbers length;      // tokens of each sequence after the call
  DeviceNumbers rows;        // of the S rows, those that are tokens
  DeviceNumbers before;      // tokens before the call, unless at_end
  bool at_end = false;       // they are length - rows
  int64_t least_before = 0;  // of those; queries may stand before all keys, new rows follow none at least
  WindowCache cache;
  bool appends = false;
  // [3, B]: length, query_position, first_column; of an append past_length, length, skip.
  int64_t* places = nullptr;
  int64_t* rotary = nullptr;  // [B, S]: positions in the sequence
};

}  // namespace kvshare::cuda
