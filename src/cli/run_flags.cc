#include "cli/run_flags.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <map>
#include <utility>

#include "cli/choice.h"
#include "report/report.h"

namespace kvshare::cli {
namespace {

// The folder of the running executable.
std::string ExecutableFolder() {
  std::error_code ignored;
  return std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path().string();
}

// Beside the executable, as it is built, installed and packed.
std::string DefaultLibrary() {
  return (std::filesystem::path(ExecutableFolder()) / "../lib/libkvshare_ort.so").lexically_normal().string();
}

int64_t NumberOf(const std::string& text) {
  int64_t number = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() ? number : -1;
}

// A KEY=VALUE: its two parts, and what is wrong with it, or nothing.
std::pair<std::string, std::string> SplitPair(const std::string& pair) {
  const size_t at = pair.find('=');
  return {pair.substr(0, at), pair.substr(at + 1)};
}

std::string CheckPair(const std::string& pair) {
  const size_t at = pair.find('=');
  return at == std::string::npos || at == 0 ? "needs KEY=VALUE, got '" + pair + "'" : std::string();
}

std::string CheckExtent(const std::string& pair) {
  constexpr int64_t kLargest = int64_t{1} << 40;
  const int64_t number = CheckPair(pair).empty() ? NumberOf(SplitPair(pair).second) : -1;
  return number < 0 || number > kLargest ? "needs NAME=N, a count, got '" + pair + "'" : std::string();
}

Via ViaOf(const RunFlags& flags) {
  if (flags.via) return *flags.via;
  return flags.library.empty() ? Via::kAsNeeded : Via::kOps;  // who names a library wants it
}

}  // namespace

CLI::Option* AddPairs(CLI::App& verb, const std::string& flag, Pairs& pairs, const std::string& type_name,
                      const std::string& description) {
  const auto take = [flag, &pairs](const std::vector<std::string>& given) {
    for (const std::string& text : given) {
      auto pair = SplitPair(text);
      if (std::ranges::find(pairs, pair.first, &Pairs::value_type::first) != pairs.end())
        throw CLI::ValidationError(flag, fmt::format("'{}' is given twice", pair.first));
      pairs.push_back(std::move(pair));
    }
  };
  return verb.add_option_function<std::vector<std::string>>(flag, take, description)
      ->type_name(type_name)
      ->allow_extra_args(false)  // one a flag, or it would swallow MODEL
      ->check(CheckPair);
}

RunOptions RunFlags::Options() const {
  RunOptions options;
  options.via = ViaOf(*this);
  options.library = library.empty() ? DefaultLibrary() : library;
  options.entries = entries;
  for (const auto& [name, extent] : extents) options.extents[name] = NumberOf(extent);
  return options;
}

std::vector<CLI::Option*> AddRunFlags(CLI::App& verb, RunFlags& flags) {
  return {
      verb.add_option(
          "--ort", flags.ort,
          "ONNX Runtime: libonnxruntime.so or a wheel's folder (default: $KVSHARE_ORT, else .venv's wheel)"),
      verb.add_option(
          "--lib", flags.library,
          "Library to register (default: libkvshare_ort.so beside this program); with it --via is ops unless "
          "it is given"),
      AddChoice(
          verb, "--via", flags.via, kVias,
          "How kvshare comes in: as an execution provider (ep, ONNX Runtime 1.24 or later), by its operators (ops), or "
          "by its operators in place of ONNX Runtime's own (dropin). Default of doctor: what suits the model and this "
          "ONNX Runtime. Default of verify: ops, where the model needs them"),
      AddPairs(verb, "--entry", flags.entries, "KEY=VALUE",
               "Session entry, e.g. kvshare.drop_in=1; set before the registration"),
      AddPairs(
          verb, "--extent", flags.extents, "NAME=N",
          "An extent that nothing else tells, by its name in the model's inputs (kv_cache_dim=64), or by input and "
          "axis (past_conv.0.1=64)")
          ->check(CheckExtent)};
}

Result<std::shared_ptr<const Runtime>> OpenRuntime(const RunFlags& flags) {
  return OpenOnnxRuntime(flags.ort, ExecutableFolder());
}

std::string Spelled(const std::string& text) {
  static const std::map<std::string, std::string> others = {{"library", "--lib"},
                                                            {"tolerance", "--tol"},
                                                            {"target", "--to"},
                                                            {"min_ort", "--min-ort"},
                                                            {"weights_name", "--weights"},
                                                            {"link_weights", "--link-weights"},
                                                            {"window_caches", "--window-caches"},
                                                            {"kv_cache", "--kv-cache"},
                                                            {"scale_per_tensor", "--scale-per-tensor"}};
  return report::SpellOptions(text, [](const std::string& name, const std::string& value) {
    const auto found = others.find(name);
    const std::string flag = found == others.end() ? "--" + name : found->second;
    return value.empty() ? flag : flag + " " + value;
  });
}

ExitCode Report(const Status& failure) {
  const std::string line = fmt::format("kvshare: {}\n", report::OneLine(Spelled(failure.message())));
  static_cast<void>(std::fputs(line.c_str(), stderr));  // it may be closed; the exit code tells the kind all the same
  if (failure.code() == StatusCode::kInvalidInput) return kBadInput;
  return failure.code() == StatusCode::kRefused ? kRefused : kFailed;
}

ExitCode ReportNoOrt(const Status& failure) {
  Report(failure);
  return kNoOrt;
}

}  // namespace kvshare::cli
