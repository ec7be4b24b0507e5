// Bars on standard error for work that may take long. A bar is written over as work goes on, and erased when all is
// done.
#pragma once

#include <cstdint>
#include <functional>

namespace kvshare::report {

// Empty where standard error is no terminal.
using Progress = std::function<void(uint64_t done, uint64_t all)>;

// A bar for a file that is copied, in bytes.
Progress CopyBar();

// A bar for a decoder that is compared, in runs of the model.
Progress VerifyBar();

}  // namespace kvshare::report
