#include "graph/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <utility>
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

// A file in `folder` for what will be `name`, with the mode that the umask leaves: the umask is all threads', so it is
// not to be asked by setting it.
struct NewFile {
  int fd = -1;
  std::string path;  // what it is called meanwhile; "": it has no name, and is gone if the process ends
};

std::string NameBeside(const fs::path& folder, const std::string& name) {
  static thread_local std::random_device random;
  return (folder / fmt::format(".{}.{:08x}", name, random())).string();
}

std::string DescriptorPath(int fd) { return fmt::format("/proc/self/fd/{}", fd); }

// It gets its name later. No descriptor where the system cannot do that.
NewFile CreateUnnamed(const fs::path& folder) {
  const int fd = ::open(folder.c_str(), O_WRONLY | O_TMPFILE | O_CLOEXEC, 0666);
  if (fd < 0 || ::access(DescriptorPath(fd).c_str(), F_OK) == 0) return {fd, ""};
  ::close(fd);
  return {};
}

NewFile CreateNamed(const fs::path& folder, const std::string& name) {
  NewFile file;
  do {
    file.path = NameBeside(folder, name);
    file.fd = ::open(file.path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (file.fd < 0 && errno == EEXIST);
  return file;
}

// Gives `file` a name for the moment before it takes its place: only a file with a name can replace another.
bool Name(const fs::path& folder, const std::string& name, NewFile& file) {
  while (file.path.empty()) {
    const std::string path = NameBeside(folder, name);
    if (::linkat(AT_FDCWD, DescriptorPath(file.fd).c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW) == 0)
      file.path = path;
    else if (errno != EEXIST)
      return false;
  }
  return true;
}

// `fill` writes the contents to a descriptor and says whether that went well (else errno).
using Fill = std::function<bool(int)>;

// Fills `file` and puts it in the place of `path`. Nothing where the file system gives it no name.
std::optional<Status> Place(const fs::path& folder, const fs::path& path, const Fill& fill, NewFile file) {
  const auto give_up = [&](const char* what) {
    Status status = Failure(what, path);
    ::close(file.fd);
    if (!file.path.empty()) ::unlink(file.path.c_str());
    return status;
  };
  struct stat replaced = {};
  if (::stat(path.c_str(), &replaced) == 0 && ::fchmod(file.fd, replaced.st_mode & 07777) != 0)
    return give_up("set the permissions of");
  if (!fill(file.fd)) return give_up("write");
  if (::fsync(file.fd) != 0) return give_up("sync");
  if (!Name(folder, path.filename().string(), file)) {
    ::close(file.fd);
    return std::nullopt;
  }
  if (::rename(file.path.c_str(), path.c_str()) != 0) return give_up("rename to");
  ::close(file.fd);
  SyncFolder(folder);
  return Status();
}

Status Replace(const fs::path& path, const Fill& fill) {
  KVSHARE_RETURN_IF_ERROR(CheckReplaceable(path));
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  if (NewFile file = CreateUnnamed(folder); file.fd >= 0)
    if (const auto status = Place(folder, path, fill, std::move(file))) return *status;
  NewFile file = CreateNamed(folder, path.filename().string());
  if (file.fd < 0) return Failure("create a file for", path);
  return *Place(folder, path, fill, std::move(file));
}

// [begin, end) of one file into the same place of another.
bool CopyRange(int from, int to, off_t begin, off_t end, const std::function<void(off_t)>& copied) {
  std::vector<char> buffer(1 << 20);
  if (::lseek(to, begin, SEEK_SET) < 0) return false;
  while (begin < end) {
    const auto wanted = static_cast<size_t>(std::min<off_t>(end - begin, 1 << 20));
    const ssize_t got = ::pread(from, buffer.data(), wanted, begin);
    if (got < 0 && errno == EINTR) continue;
    if (got == 0) errno = EIO;  // it has become shorter
    if (got <= 0 || !WriteAll(to, buffer.data(), static_cast<size_t>(got))) return false;
    begin += got;
    copied(begin);
  }
  return true;
}

// All of a file but its holes.
bool CopyBytes(int from, int to, const CopyProgress& progress) {
  struct stat source = {};
  if (::fstat(from, &source) != 0 || ::ftruncate(to, source.st_size) != 0) return false;
  const auto copied = [&](off_t done) {
    if (progress) progress(static_cast<uint64_t>(done), static_cast<uint64_t>(source.st_size));
  };
  off_t at = 0;
  while (at < source.st_size) {
    const off_t data = ::lseek(from, at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;  // a hole up to the end
    if (data < 0) return CopyRange(from, to, at, source.st_size, copied);
    at = ::lseek(from, data, SEEK_HOLE);
    if (at < 0 || !CopyRange(from, to, data, at, copied)) return false;
  }
  copied(source.st_size);
  return true;
}

}  // namespace

Status CheckReplaceable(const fs::path& path) {
  if (!path.has_filename()) return Status::InvalidInput(fmt::format("'{}': names no file", path.string()));
  std::error_code error;
  const fs::file_status found = fs::status(path, error);
  if (fs::is_directory(found)) return Status::InvalidInput(fmt::format("'{}': is a folder", path.string()));
  if (fs::exists(found) && !fs::is_regular_file(found))
    return Status::InvalidInput(fmt::format("'{}': is a device or a pipe; needs a file", path.string()));
  return {};
}

Status WriteFileAtomically(const fs::path& path, std::string_view bytes) {
  return Replace(path, [&](int fd) { return WriteAll(fd, bytes.data(), bytes.size()); });
}

Status CopyFileAtomically(const fs::path& from, const fs::path& to, const CopyProgress& progress) {
  const int source = ::open(from.c_str(), O_RDONLY | O_CLOEXEC);
  if (source < 0) return Failure("read", from);
  Status status =
      Replace(to, [&](int fd) { return ::ioctl(fd, FICLONE, source) == 0 || CopyBytes(source, fd, progress); });
  ::close(source);
  return status;
}

}  // namespace kvshare::graph
