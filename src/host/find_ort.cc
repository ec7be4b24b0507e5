#include "host/find_ort.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string_view>
#include <vector>

namespace kvshare::host {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kLibrary = "libonnxruntime.so";

// The numbers of "libonnxruntime.so.1.24.4": none for the plain name, nothing for another file.
std::optional<std::vector<int>> VersionOf(const std::string& name) {
  if (!name.starts_with(kLibrary)) return std::nullopt;
  std::vector<int> version;
  const char* at = name.data() + kLibrary.size();
  const char* const end = name.data() + name.size();
  while (at != end) {
    int number = 0;
    if (*at != '.') return std::nullopt;
    const auto [next, error] = std::from_chars(at + 1, end, number);
    if (error != std::errc()) return std::nullopt;
    version.push_back(number);
    at = next;
  }
  return version;
}

// libonnxruntime.so, .so.1 or .so.1.X.Y in `folder`; empty where there is none.
fs::path LibraryIn(const fs::path& folder) {
  std::error_code ignored;
  std::vector<int> latest;
  fs::path found;
  for (fs::directory_iterator it(folder, ignored), end; it != end; it.increment(ignored)) {
    const auto version = VersionOf(it->path().filename());
    if (!version || (!found.empty() && *version <= latest)) continue;
    latest = *version;
    found = it->path();
  }
  return found;
}

// The library of a wheel: `folder` may be site-packages, the package, or its capi folder.
fs::path LibraryOfWheel(const fs::path& folder) {
  for (const char* below : {"", "capi", "onnxruntime/capi"}) {
    if (const fs::path library = LibraryIn(folder / below); !library.empty()) return library;
  }
  return {};
}

fs::path LibraryOfVenv(const fs::path& folder) {
  std::error_code ignored;
  for (fs::directory_iterator it(folder / ".venv" / "lib", ignored), end; it != end; it.increment(ignored)) {
    if (const fs::path library = LibraryOfWheel(it->path() / "site-packages"); !library.empty()) return library;
  }
  return {};
}

Result<std::string> Asked(const fs::path& path, const std::string& by) {
  std::error_code ignored;
  if (fs::is_regular_file(path, ignored)) return fs::absolute(path).string();
  if (!fs::exists(path, ignored))
    return Status::InvalidInput(fmt::format("{} names '{}', which is not there", by, path.string()));
  const fs::path library = LibraryOfWheel(path);
  if (library.empty()) {
    return Status::InvalidInput(fmt::format("{} names '{}', which holds no libonnxruntime.so", by, path.string()));
  }
  return fs::absolute(library).string();
}

}  // namespace

Result<std::string> FindOrt(const std::string& path, const std::string& near) {
  if (!path.empty()) return Asked(path, "option 'ort'");
  if (const char* asked = std::getenv("KVSHARE_ORT"); asked != nullptr && *asked != '\0')
    return Asked(asked, "KVSHARE_ORT");
  std::error_code ignored;
  if (const fs::path library = LibraryOfVenv(fs::current_path(ignored)); !library.empty()) return library.string();
  for (fs::path folder = near; folder.has_relative_path(); folder = folder.parent_path()) {
    if (const fs::path library = LibraryOfVenv(folder); !library.empty()) return library.string();
  }
  return Status::InvalidInput(
      "no ONNX Runtime found; name libonnxruntime.so or a wheel's folder with option 'ort' or KVSHARE_ORT, "
      "or install the wheel into .venv");
}

}  // namespace kvshare::host
