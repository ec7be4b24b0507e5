#include "cli/flag_names.h"

#include <algorithm>
#include <array>
#include <utility>

namespace kvshare::cli {
namespace {

constexpr std::array<std::pair<std::string_view, std::string_view>, 14> kFlags = {{
    {"target", "--to"},
    {"rope", "--rope"},
    {"min_ort", "--min-ort"},
    {"weights_name", "--weights"},
    {"link_weights", "--link-weights"},
    {"ort", "--ort"},
    {"library", "--lib"},
    {"via", "--via"},
    {"entry", "--entry"},
    {"extent", "--extent"},
    {"golden", "--golden"},
    {"against", "--against"},
    {"tolerance", "--tol"},
    {"steps", "--steps"},
}};

}  // namespace

std::string WithFlags(std::string_view text) {
  std::string filled;
  while (!text.empty()) {
    const size_t open = std::min(text.find('{'), text.size());
    filled += text.substr(0, open);
    text.remove_prefix(open);
    const size_t close = text.find('}');
    const std::string_view name = close == std::string_view::npos ? "" : text.substr(1, close - 1);
    const auto flag = std::find_if(kFlags.begin(), kFlags.end(), [&](const auto& f) { return f.first == name; });
    if (flag != kFlags.end()) {
      filled += flag->second;
      text.remove_prefix(close + 1);
    } else if (!text.empty()) {
      filled += text.front();
      text.remove_prefix(1);
    }
  }
  return filled;
}

}  // namespace kvshare::cli
