// Files that are complete or absent: written beside their place under another name, synced, then renamed.
#pragma once

#include <filesystem>
#include <string_view>

#include "kvshare/status.h"

namespace kvshare::graph {

// kInternal, naming the path and the system's reason; nothing is left behind then.
Status WriteFileAtomically(const std::filesystem::path& path, std::string_view bytes);

// A copy of `from` under `to`, by the same way.
Status CopyFileAtomically(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace kvshare::graph
