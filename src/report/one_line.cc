#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "report/report.h"

namespace kvshare::report {
namespace {

// The bytes of the character that `text` begins with, where it is UTF-8 that a terminal shows; else 0.
size_t BytesToShow(std::string_view text) {
  const auto at = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = at(0);
  if (first < 0x80) return first >= 0x20 && first != 0x7F ? 1 : 0;
  const size_t bytes = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < bytes) return 0;
  if (!std::ranges::all_of(text.substr(1, bytes - 1), [](unsigned char c) { return (c & 0xC0) == 0x80; })) return 0;
  const unsigned char second = at(1);
  const bool is_control = first == 0xC2 && second < 0xA0;
  const bool is_too_long = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
  const bool is_no_character = (first == 0xED && second >= 0xA0) || (first == 0xF4 && second >= 0x90);
  return is_control || is_too_long || is_no_character ? 0 : bytes;
}

}  // namespace

std::string OneLine(std::string_view text) {
  std::string line;
  while (!text.empty()) {
    const size_t bytes = BytesToShow(text);
    if (bytes > 0)
      line += text.substr(0, bytes);
    else
      line += text.front() == '\n' ? "\\n" : fmt::format("\\x{:02x}", static_cast<unsigned char>(text.front()));
    text.remove_prefix(std::max<size_t>(bytes, 1));
  }
  return line;
}

}  // namespace kvshare::report
