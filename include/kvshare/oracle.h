// The truth in double precision, naive and readable. Serves float64 models and is what the tests compare the SIMD
// kernels with. Single-threaded, and slow on purpose. call.h says what a call is.
#pragma once

#include "kvshare/call.h"

namespace kvshare {

// Attention of any type that CheckAttention allows, f64 among them; needs CheckAttention(call).ok().
void AttendOracle(const AttentionCall& call);

// A cache append of any type that CheckAppend allows, f64 among them; needs CheckAppend(call).ok().
void AppendOracle(const AppendCall& call);

}  // namespace kvshare
