#include "graph/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

namespace kvshare::graph {
namespace {

namespace fs = std::filesystem;

Status Failure(const char* what, const fs::path& path) {
  return Status::Internal(fmt::format("cannot {} '{}': {}", what, path.string(), std::strerror(errno)));
}

bool WriteAll(int fd, const char* data, size_t size) {
  while (size > 0) {
    const ssize_t written = ::write(fd, data, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    data += written;
    size -= static_cast<size_t>(written);
  }
  return true;
}

void SyncFolder(const fs::path& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;  // the rename itself is done; only its durability over a power cut is not confirmed
  ::fsync(fd);
  ::close(fd);
}

// A new file in `folder` for what will be `name`, with the mode that the umask leaves: the umask is all threads', so it
// is not to be asked by setting it. `*path` is what it is called meanwhile.
int CreateBeside(const fs::path& folder, const std::string& name, std::string* path) {
  std::random_device random;
  int fd = -1;
  do {
    *path = (folder / fmt::format(".{}.{:08x}", name, random())).string();
    fd = ::open(path->c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (fd < 0 && errno == EEXIST);
  return fd;
}

// `fill` writes the contents to a descriptor and says whether that went well (else errno).
Status Replace(const fs::path& path, const std::function<bool(int)>& fill) {
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  std::string temporary;
  const int fd = CreateBeside(folder, path.filename().string(), &temporary);
  if (fd < 0) return Failure("create a file for", path);
  const auto give_up = [&](const char* what) {
    Status status = Failure(what, path);
    ::close(fd);
    ::unlink(temporary.c_str());
    return status;
  };
  if (!fill(fd)) return give_up("write");
  if (::fsync(fd) != 0) return give_up("sync");
  if (::rename(temporary.c_str(), path.c_str()) != 0) return give_up("rename to");
  ::close(fd);
  SyncFolder(folder);
  return {};
}

}  // namespace

Status WriteFileAtomically(const fs::path& path, std::string_view bytes) {
  return Replace(path, [&](int fd) { return WriteAll(fd, bytes.data(), bytes.size()); });
}

Status CopyFileAtomically(const fs::path& from, const fs::path& to) {
  const int source = ::open(from.c_str(), O_RDONLY | O_CLOEXEC);
  if (source < 0) return Failure("read", from);
  Status status = Replace(to, [&](int fd) {
    std::vector<char> buffer(1 << 20);
    for (;;) {
      const ssize_t got = ::read(source, buffer.data(), buffer.size());
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return got == 0;
      if (!WriteAll(fd, buffer.data(), static_cast<size_t>(got))) return false;
    }
  });
  ::close(source);
  return status;
}

}  // namespace kvshare::graph
