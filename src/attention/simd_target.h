// Which SIMD target the kernels may use.
#pragma once

#include "kvshare/status.h"

namespace kvshare {

// Before the first dispatch: lets Intel's CPUs that have AVX3_ZEN4's instructions run its code;
// KVSHARE_SIMD_TARGET=<name> keeps the kernels to that target and lesser ones, to try or to measure what a lesser CPU
// runs; read once. kRefused where this CPU or this build has no such target.
Status LimitSimdTarget();

}  // namespace kvshare
