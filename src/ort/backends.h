// The backends of an op library.
#pragma once

#include <span>

#include "backend/backend.h"

namespace kvshare::ort {

// Every op is registered for each of them. Defined once a library, by one backends_*.cc; the first is that of sessions
// without another provider.
std::span<const Backend* const> Backends();

}  // namespace kvshare::ort
