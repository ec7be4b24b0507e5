// The execution provider of kvshare's library, for those who name it.
#pragma once

namespace kvshare {

// What provider lists call it.
inline constexpr const char* kProviderName = "KvshareExecutionProvider";

}  // namespace kvshare
