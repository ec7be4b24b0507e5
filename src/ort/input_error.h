// The error messages of all adapters about an input that is not as it must be.
#pragma once

#include <string>
#include <string_view>

#include "kvshare/status.h"
#include "ort/ort_context.h"

namespace kvshare::ort {

// "<where>: input '<input>' <fact>; needs <want>"
Status InputError(std::string_view where, const char* input, const std::string& fact, const std::string& want);
// Refuses another rank than `rank`, e.g. with want "rank 4 [B, Hkv, T, D]".
Status CheckRank(std::string_view where, const char* input, const Tensor& tensor, size_t rank, const char* want);
// Both or neither of a pair.
Status CheckPair(std::string_view where, const char* a_name, bool a, const char* b_name, bool b);

}  // namespace kvshare::ort
