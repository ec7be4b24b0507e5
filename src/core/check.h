// Shared by the judges of calls.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <limits>
#include <string_view>
#include <utility>

#include "kvshare/call.h"

namespace kvshare {

// Keys are numbered in 32 bits inside the kernels.
inline constexpr int64_t kMaxTokens = std::numeric_limits<int32_t>::max() - 64;

template <typename... Args>
Status BadCall(std::string_view where, fmt::format_string<Args...> format, Args&&... args) {
  return Status::InvalidInput(fmt::format("{}: {}", where, fmt::format(format, std::forward<Args>(args)...)));
}

// The lengths and positions that lie in host memory, of a call whose extents and types are judged. Nothing where any
// lies on a device, whose kernels clamp.
Status CheckNumbers(const AttentionCall& call, std::string_view where);
Status CheckNumbers(const AppendCall& call, std::string_view where);

}  // namespace kvshare
