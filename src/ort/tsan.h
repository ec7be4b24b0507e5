// ONNX Runtime's thread pool is not instrumented: ThreadSanitizer does not see that it hands work over and waits for
// it. These two say so; without ThreadSanitizer they are nothing.
#pragma once

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

namespace kvshare::ort {

// Tells ThreadSanitizer: this thread's earlier writes happen before a later TsanObserve of `token`.
inline void TsanPublish([[maybe_unused]] void* token) {
#ifdef __SANITIZE_THREAD__
  __tsan_release(token);
#endif
}

inline void TsanObserve([[maybe_unused]] void* token) {
#ifdef __SANITIZE_THREAD__
  __tsan_acquire(token);
#endif
}

}  // namespace kvshare::ort
