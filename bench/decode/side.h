// What decode_bench loads: one build of the attention core behind one function, so that two builds can be compared in
// one process. Both must have been built with the same include/kvshare/.
#pragma once

#include "kvshare/call.h"

// Computes `call` on the calling thread. Null, or why not.
extern "C" const char* kvshare_decode_side(const kvshare::AttentionCall* call);
