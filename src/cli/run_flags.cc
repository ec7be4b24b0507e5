#include "cli/run_flags.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>

#include "cli/flag_names.h"
#include "host/find_ort.h"

namespace kvshare::cli {

std::string RunFlags::LibraryPath() const {
  return library.empty() ? host::ExecutableFolder() + "/../lib/libkvshare_ort.so" : library;
}

host::SessionEntries RunFlags::Entries() const {
  host::SessionEntries pairs;
  for (const std::string& entry : entries) {
    const size_t at = entry.find('=');
    pairs.emplace_back(entry.substr(0, at), entry.substr(at + 1));
  }
  return pairs;
}

host::Library RunFlags::WhenLibrary() const {
  const bool asked = !library.empty() || std::any_of(entries.begin(), entries.end(),
                                                     [](const std::string& e) { return e.starts_with("kvshare."); });
  return asked ? host::Library::kAlways : host::Library::kOnDemand;
}

void AddRunFlags(CLI::App& verb, RunFlags& flags) {
  verb.add_option("--ort", flags.ort,
                  "ONNX Runtime: libonnxruntime.so or a wheel's folder (default: $KVSHARE_ORT, else .venv's wheel)");
  verb.add_option("--lib", flags.library, "library to register (default: libkvshare_ort.so beside this program)");
  verb.add_option("--entry", flags.entries, "session entry, e.g. kvshare.drop_in=1; set before the registration")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false)  // one a flag, or it would swallow MODEL
      ->check([](const std::string& entry) {
        const size_t at = entry.find('=');
        return at == std::string::npos || at == 0 ? "needs KEY=VALUE, got '" + entry + "'" : std::string();
      });
}

Result<std::shared_ptr<const host::OrtHost>> OpenOrt(const RunFlags& flags) {
  KVSHARE_ASSIGN_OR_RETURN(const std::string file, host::FindOrt(flags.ort));
  return host::OrtHost::Open(file);
}

ExitCode Report(const Status& failure) {
  fmt::print(stderr, "kvshare: {}\n", WithFlags(failure.message()));
  if (failure.code() == StatusCode::kInvalidInput) return kBadInput;
  return failure.code() == StatusCode::kRefused ? kRefused : kFailed;
}

}  // namespace kvshare::cli
