#include "report/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <utility>

namespace kvshare::report {
namespace {

void Draw(const char* what, uint64_t done, uint64_t all, const std::string& amount) {
  constexpr uint64_t kWidth = 30;
  const uint64_t full = all == 0 ? kWidth : done * kWidth / all;
  fmt::print(stderr, "\r{} [{:<{}}] {}{}", what, std::string(full, '#'), kWidth, amount,
             done == all ? "\r\033[K" : "");  // erases to the end of the line
  std::fflush(stderr);
}

Progress OnTerminal(Progress bar) { return ::isatty(STDERR_FILENO) != 0 ? std::move(bar) : Progress(); }

}  // namespace

Progress CopyBar() {
  return OnTerminal([](uint64_t done, uint64_t bytes) {
    constexpr double kGigabyte = 1e9;
    Draw("copying weights", done, bytes,
         fmt::format("{:.1f} of {:.1f} GB", static_cast<double>(done) / kGigabyte,
                     static_cast<double>(bytes) / kGigabyte));
  });
}

Progress VerifyBar() {
  return OnTerminal([](uint64_t done, uint64_t steps) {
    Draw("running the model", done, steps, fmt::format("{} of {}", done, steps));
  });
}

}  // namespace kvshare::report
