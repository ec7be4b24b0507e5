#include <algorithm>
#include <cctype>
#include <optional>
#include <string_view>

#include "report/report.h"

namespace kvshare::report {
namespace {

// Takes what `text` begins with up to `end`, and `end`; nothing is taken where there is no such end.
std::optional<std::string_view> TakeUpTo(std::string_view& text, char end) {
  const size_t length = text.find(end);
  if (length == std::string_view::npos) return std::nullopt;
  const std::string_view taken = text.substr(0, length);
  text.remove_prefix(length + 1);
  return taken;
}

bool IsName(std::string_view name) {
  return !name.empty() && std::ranges::all_of(name, [](unsigned char c) { return std::isalnum(c) != 0 || c == '_'; });
}

}  // namespace

// No regular expression: std::regex takes stack for each character, and a value may be of any length.
std::string SpellOptions(const std::string& text, const Spelling& spelling) {
  constexpr std::string_view option = "option '";
  constexpr std::string_view equals = " = '";
  std::string spelled;
  std::string_view rest = text;
  for (size_t at = rest.find(option); at != std::string_view::npos; at = rest.find(option)) {
    spelled.append(rest.substr(0, at));
    rest.remove_prefix(at);
    std::string_view after = rest.substr(option.size());
    const auto name = TakeUpTo(after, '\'');
    if (!name || !IsName(*name)) {
      spelled.append(option);
      rest.remove_prefix(option.size());
      continue;
    }
    std::string_view value;
    if (std::string_view behind = after; behind.starts_with(equals)) {
      behind.remove_prefix(equals.size());
      if (const auto taken = TakeUpTo(behind, '\'')) {
        value = *taken;
        after = behind;
      }
    }
    spelled += spelling(std::string(*name), std::string(value));
    rest = after;
  }
  return spelled.append(rest);
}

}  // namespace kvshare::report
