// How the library reports failure: it never throws across its API, never aborts, never prints.
#pragma once

#include <cassert>
#include <optional>
#include <string>
#include <utility>

namespace kvshare {

enum class StatusCode {
  kOk,
  kInvalidInput,  // the caller's model, shapes or values are wrong
  kRefused,       // well formed, but outside what was asked for or is served
  kInternal,      // a fault of kvshare or of the machine (disk full, out of memory)
};

// Success, or a code and one line of text. Messages follow one form:
//   <op> '<node>': input '<name>' <fact>; needs <fact>[; hint]
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  static Status InvalidInput(std::string message) { return {StatusCode::kInvalidInput, std::move(message)}; }
  static Status Refused(std::string message) { return {StatusCode::kRefused, std::move(message)}; }
  static Status Internal(std::string message) { return {StatusCode::kInternal, std::move(message)}; }

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

// A value, or why there is none.
template <typename T, typename Failure = Status>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}                                   // NOLINT(google-explicit-constructor)
  Result(Failure status) : status_(std::move(status)) { assert(!status_.ok()); }  // NOLINT(google-explicit-constructor)

  bool ok() const { return value_.has_value(); }
  const Failure& status() const { return status_; }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }
  T&& operator*() && { return *std::move(value_); }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  std::optional<T> value_;
  Failure status_;
};

}  // namespace kvshare

#define KVSHARE_CONCAT_INNER(a, b) a##b
#define KVSHARE_CONCAT(a, b) KVSHARE_CONCAT_INNER(a, b)

// Returns the failure of an expression of type Status (or of another type with ok()).
#define KVSHARE_RETURN_IF_ERROR(expression)                                              \
  do {                                                                                   \
    if (auto kvshare_status = (expression); !kvshare_status.ok()) return kvshare_status; \
  } while (false)

// Declares `declaration` from a Result, or returns its failure.
#define KVSHARE_ASSIGN_OR_RETURN(declaration, expression)                                                         \
  auto KVSHARE_CONCAT(kvshare_result_, __LINE__) = (expression);                                                  \
  if (!KVSHARE_CONCAT(kvshare_result_, __LINE__).ok()) return KVSHARE_CONCAT(kvshare_result_, __LINE__).status(); \
  declaration = *std::move(KVSHARE_CONCAT(kvshare_result_, __LINE__))
