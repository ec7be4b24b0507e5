#include "cli/run_flags.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
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

std::pair<std::string, std::string> SplitPair(const std::string& pair) {
  const size_t at = pair.find('=');
  return {pair.substr(0, at), pair.substr(at + 1)};
}

std::string CheckPair(const std::string& pair) {
  const size_t at = pair.find('=');
  return at == std::string::npos || at == 0 ? "needs KEY=VALUE, got '" + pair + "'" : std::string();
}

RunOptions RunFlags::Options() const {
  RunOptions options;
  options.via = ViaOf(*this);
  options.library = library.empty() ? DefaultLibrary() : library;
  for (const std::string& entry : entries) options.entries.push_back(SplitPair(entry));
  for (const std::string& extent : extents)
    options.extents[SplitPair(extent).first] = NumberOf(SplitPair(extent).second);
  return options;
}

void AddRunFlags(CLI::App& verb, RunFlags& flags) {
  verb.add_option("--ort", flags.ort,
                  "ONNX Runtime: libonnxruntime.so or a wheel's folder (default: $KVSHARE_ORT, else .venv's wheel)");
  verb.add_option(
      "--lib", flags.library,
      "Library to register (default: libkvshare_ort.so beside this program); with it --via is ops unless it is given");
  AddChoice(
      verb, "--via", flags.via, kVias,
      "How kvshare comes in: as an execution provider (ep, ONNX Runtime 1.24 or later), by its operators (ops), or "
      "by its operators in place of ONNX Runtime's own (dropin). Default of doctor: what suits the model and this "
      "ONNX Runtime. Default of verify: ops, where the model needs them");
  verb.add_option("--entry", flags.entries, "Session entry, e.g. kvshare.drop_in=1; set before the registration")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false)  // one a flag, or it would swallow MODEL
      ->check(CheckPair);
  verb.add_option("--extent", flags.extents,
                  "An extent that nothing else tells, by its name in the model's inputs (kv_cache_dim=64), or by input "
                  "and axis (past_conv.0.1=64)")
      ->type_name("NAME=N")
      ->allow_extra_args(false)
      ->check(CheckExtent);
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
  const std::string line = fmt::format("kvshare: {}\n", Spelled(failure.message()));
  static_cast<void>(std::fputs(line.c_str(), stderr));  // it may be closed; the exit code tells the kind all the same
  if (failure.code() == StatusCode::kInvalidInput) return kBadInput;
  return failure.code() == StatusCode::kRefused ? kRefused : kFailed;
}

ExitCode ReportNoOrt(const Status& failure) {
  Report(failure);
  return kNoOrt;
}

}  // namespace kvshare::cli
