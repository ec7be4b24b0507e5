// The plan of one attention node: what the values between this provider's own nodes mean to its kernel.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>

namespace kvshare::ep {

struct Plan {
  bool lower_right = false;     // Attention without a past: is_causal counts from the last key, not the first
  bool hides_presents = false;  // nobody reads outputs 1 and 2

  // Attention: input 3 is this value, written by a mask group: a key mask [B, T], one byte a key. "": an ordinary mask.
  std::string key_mask = {};
  bool drops_mask = false;  // Attention: input 3 says no more than window and causality by columns
  int64_t window = -1;      // of the mask: keys with the query's own
  bool columns = false;     // the key mask hides padding alone: positions are columns, not the count of what is kept

  // Attention: inputs 1 and 2 are these values, written by aliases: [B, T, H * D] by their shape, and [B, H, T, D] in
  // memory. Empty: as their shape says.
  std::array<std::string, 2> unfolded = {};
  int64_t kv_heads = 0;  // H of unfolded, or of keys and values that the graph repeats; 0: as the node says

  // Does an input hold other contents than its type and shape say?
  bool ReadsOtherwise() const { return !key_mask.empty() || kv_heads > 0; }

  friend bool operator==(const Plan&, const Plan&) = default;
};

// Plans by the name of the node's first output.
using Plans = std::map<std::string, Plan>;

}  // namespace kvshare::ep
