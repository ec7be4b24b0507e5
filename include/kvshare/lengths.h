// Lengths and positions as rules: what the numbers are, and where they lie. Whoever can read them computes with them,
// so that numbers in a device's memory need no trip to the host. Part of call.h.
#pragma once

#include <cstdint>
#include <limits>

#include "kvshare/shapes.h"

namespace kvshare {

// Where the memory at an address is.
enum class Memory : uint8_t { kHost, kDevice };

// One number for each sequence of a call.
struct Lengths {
  enum class Kind : uint8_t {
    kDefault,  // what the comment of the field says
    kSame,     // `bound` for every sequence
    kGiven,    // data[b]
    kLessOne,  // data[b] + 1: data counts one less, as ONNX Runtime's seqlens_k does
    kAtEnd,    // of a position: the length, less the rows that are tokens; those are the last of the sequence
  };
  Kind kind = Kind::kDefault;
  const void* data = nullptr;  // [B], of kGiven and kLessOne
  DType type = DType::kI64;    // or kI32
  Memory memory = Memory::kHost;
  // No number is larger: what a backend may plan with that cannot read them. It clamps what it finds on the device.
  int64_t bound = std::numeric_limits<int32_t>::max();

  Lengths() = default;
  // [B] numbers in host memory; null: the default.
  Lengths(const int64_t* numbers)  // NOLINT(google-explicit-constructor)
      : kind(numbers != nullptr ? Kind::kGiven : Kind::kDefault), data(numbers) {}
  static Lengths Same(int64_t number) {
    Lengths same;
    same.kind = Kind::kSame;
    same.bound = number;
    return same;
  }
  static Lengths AtEnd() {
    Lengths at_end;
    at_end.kind = Kind::kAtEnd;
    return at_end;
  }

  // Whether the field's default does not hold.
  explicit operator bool() const { return kind != Kind::kDefault; }
  bool OnHost() const { return data == nullptr || memory == Memory::kHost; }
  // Number b of numbers OnHost(), neither kDefault nor kAtEnd.
  int64_t At(int64_t b) const {
    if (kind == Kind::kSame) return bound;
    const int64_t number =
        type == DType::kI32 ? static_cast<const int32_t*>(data)[b] : static_cast<const int64_t*>(data)[b];
    return kind == Kind::kLessOne ? number + 1 : number;
  }
};

// The rows of the rotary tables that a call's S rows take.
struct RotaryPositions {
  const int64_t* data = nullptr;  // [B, S]; null: row 0's position and those that follow it
  bool same_start = false;        // data[0] + s for every sequence, instead
  Memory memory = Memory::kHost;

  RotaryPositions() = default;
  RotaryPositions(const int64_t* positions) : data(positions) {}  // NOLINT(google-explicit-constructor)

  bool OnHost() const { return data == nullptr || memory == Memory::kHost; }
  // The position of row s of sequence b, whose row 0 stands at `first`.
  int64_t At(int64_t b, int64_t s, int64_t S, int64_t first) const {
    if (data == nullptr) return first + s;
    return same_start ? data[0] + s : data[b * S + s];
  }
};

// A cache that keeps only each sequence's last tokens, at least the `window` that the next query sees: row 0 is the
// oldest one kept. While all tokens fit, it keeps all; once full, it drops capacity - window + 1 of them at a time.
// Lengths and positions of a call with such a cache count all tokens of a sequence, dropped ones too.
struct WindowCache {
  int64_t capacity = 0;  // rows; 0: a cache that keeps every token, row 0 the first
  int64_t window = 0;    // keys that a query sees, its own included
  // The keys are not the cache but what it held before the call with all new rows behind: some new row sees a key that
  // the cache has dropped afterwards.
  bool staged = false;

  explicit operator bool() const { return capacity > 0; }
};

}  // namespace kvshare
