// Files that are complete or absent: written beside their place without a name, or under another where the file system
// needs one, synced, then renamed. A process that is killed leaves nothing where no name is needed.
//
// A file that is replaced hands its permissions on, not its owner. A link that is replaced becomes a file: what it led
// to stays as it is.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string_view>

#include "kvshare/status.h"

namespace kvshare::graph {

// kInvalidInput where `path` names no file, or something other than a file: a folder, a device, a pipe. A link counts
// as what it leads to. What exists there would be gone.
Status CheckReplaceable(const std::filesystem::path& path);

// Told as bytes are copied, of all that the file has.
using CopyProgress = std::function<void(uint64_t done, uint64_t bytes)>;

// CheckReplaceable(), or kInternal, naming the path and the system's reason; nothing is left behind then.
Status WriteFileAtomically(const std::filesystem::path& path, std::string_view bytes);

// A copy of `from` under `to`, by the same way. Where the file system can, it shares its blocks with `from` until one
// of both is written to; holes stay holes.
Status CopyFileAtomically(const std::filesystem::path& from, const std::filesystem::path& to,
                          const CopyProgress& progress = {});

}  // namespace kvshare::graph
