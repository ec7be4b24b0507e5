// Why a layer or a node is left alone: what a matcher or a guard says, to rewrite rules and to whoever else asks.
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>

#include "kvshare/status.h"

namespace kvshare::graph {

enum class DeclineCode {
  kNone,
#define KVSHARE_DECLINE_CODE(name, text) k##name,
#include "graph/match/decline_codes.inc"
#undef KVSHARE_DECLINE_CODE
};

// "mask-unknown"; "" for kNone.
const char* TextOf(DeclineCode code);

// ok(): nothing stands against it.
class [[nodiscard]] Decline {
 public:
  Decline() = default;
  Decline(DeclineCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == DeclineCode::kNone; }
  DeclineCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  DeclineCode code_ = DeclineCode::kNone;
  std::string message_;
};

// Decline with a message by format.
template <typename... Args>
Decline Because(DeclineCode code, fmt::format_string<Args...> format, Args&&... args) {
  return {code, fmt::format(format, std::forward<Args>(args)...)};
}

// A match, or why there is none. KVSHARE_RETURN_IF_ERROR and KVSHARE_ASSIGN_OR_RETURN hand a Decline on.
template <typename T>
using Matched = Result<T, Decline>;

}  // namespace kvshare::graph
