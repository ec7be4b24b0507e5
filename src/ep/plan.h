// What one attention node's kernel knows beyond its node: what the values between this provider's own nodes mean.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace kvshare::ep {

struct Plan {
  bool lower_right = false;     // Attention without a past: is_causal counts from the last key, not the first
  bool hides_presents = false;  // nobody reads outputs 1 and 2

  friend bool operator==(const Plan&, const Plan&) = default;
};

// By the name of the node's first output.
using Plans = std::map<std::string, Plan>;

}  // namespace kvshare::ep
