#include "host/find_ort.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <vector>

namespace kvshare::host {
namespace {

namespace fs = std::filesystem;

// libonnxruntime.so, .so.1 or .so.1.X.Y in `folder`; empty where there is none.
fs::path LibraryIn(const fs::path& folder) {
  std::error_code ignored;
  std::vector<fs::path> found;
  for (fs::directory_iterator it(folder, ignored), end; it != end; it.increment(ignored)) {
    const std::string name = it->path().filename();
    if (name.starts_with("libonnxruntime.so")) found.push_back(it->path());
  }
  return found.empty() ? fs::path() : *std::max_element(found.begin(), found.end());
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

std::string ExecutableFolder() {
  std::error_code ignored;
  return fs::read_symlink("/proc/self/exe", ignored).parent_path().string();
}

Result<std::string> FindOrt(const std::string& path) {
  if (!path.empty()) return Asked(path, "--ort");
  if (const char* asked = std::getenv("KVSHARE_ORT"); asked != nullptr && *asked != '\0')
    return Asked(asked, "KVSHARE_ORT");
  std::error_code ignored;
  if (const fs::path library = LibraryOfVenv(fs::current_path(ignored)); !library.empty()) return library.string();
  for (fs::path folder = ExecutableFolder(); folder.has_relative_path(); folder = folder.parent_path()) {
    if (const fs::path library = LibraryOfVenv(folder); !library.empty()) return library.string();
  }
  return Status::InvalidInput(
      "no ONNX Runtime found; name libonnxruntime.so or a wheel's folder with --ort or KVSHARE_ORT, "
      "or install the wheel into .venv");
}

}  // namespace kvshare::host
