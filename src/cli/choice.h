// A flag that takes one of a few names.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvshare::cli {

// Adds `flag`, whose text must be one of `names`; `value` gets what that name stands for. Both outlive the parse.
template <typename Meaning, size_t N, typename Value>
CLI::Option* AddChoice(CLI::App& verb, const std::string& flag, Value& value,
                       const std::array<std::pair<std::string_view, Meaning>, N>& names,
                       const std::string& description) {
  std::vector<std::string> known;
  for (const auto& [name, meaning] : names) known.emplace_back(name);
  const auto take = [&value, &names](const std::string& given) {
    value = std::ranges::find(names, given, [](const auto& choice) { return choice.first; })->second;
  };
  return verb.add_option_function<std::string>(flag, take, description)->check(CLI::IsMember(known));
}

}  // namespace kvshare::cli
