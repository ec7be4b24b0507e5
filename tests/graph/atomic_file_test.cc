// What the disk is asked, and what is left when it says no. The calls are interposed: this program has its own fsync,
// access and ioctl, which the library's objects are linked to.
#include "graph/atomic_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace {

bool fsync_fails = false;
bool linkat_fails = false;
bool clones = false;
bool needs_names = false;         // a file without a name could not get one later
std::vector<std::string> synced;  // what each descriptor led to

std::string PathOf(int fd) { return std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd)).string(); }

}  // namespace

extern "C" int fsync(int fd) {
  synced.push_back(PathOf(fd));
  if (!fsync_fails) return 0;
  errno = EIO;
  return -1;
}

extern "C" int access(const char* path, int mode) { return needs_names ? -1 : ::faccessat(AT_FDCWD, path, mode, 0); }

extern "C" int linkat(int from_folder, const char* from, int to_folder, const char* to, int flags) {
  if (!linkat_fails) return static_cast<int>(::syscall(SYS_linkat, from_folder, from, to_folder, to, flags));
  errno = EOPNOTSUPP;
  return -1;
}

// A file system that can share blocks does so here by a mark that no copy would leave.
// NOLINTNEXTLINE(readability-identifier-naming): libc's name
extern "C" int ioctl(int fd, unsigned long request, ...) {
  if (request == FICLONE && clones) return ::write(fd, "shared", 6) == 6 ? 0 : -1;
  errno = EOPNOTSUPP;
  return -1;
}

namespace kvshare::graph {
namespace {

namespace fs = std::filesystem;

class AtomicFile : public testing::Test {
 protected:
  AtomicFile() : folder_(fs::path(testing::TempDir()) / ("kvshare_atomic_" + std::to_string(::getpid()))) {
    fs::create_directories(folder_);
    fsync_fails = linkat_fails = clones = needs_names = false;
    synced.clear();
  }
  ~AtomicFile() override { fs::remove_all(folder_); }

  fs::path Path(const char* name) const { return folder_ / name; }
  fs::path Write(const char* name, const std::string& text) const {
    std::ofstream(Path(name), std::ios::binary) << text;
    return Path(name);
  }
  static std::string Read(const fs::path& path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
  }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) names.push_back(entry.path().filename().string());
    return names;
  }

 private:
  fs::path folder_;
};

TEST_F(AtomicFile, ADiskThatDoesNotConfirmLeavesTheOldFileAndNothingElse) {
  const fs::path path = Write("model.onnx", "old");
  fsync_fails = true;
  for (const bool named : {false, true}) {
    needs_names = named;
    const Status status = WriteFileAtomically(path, "new");
    EXPECT_EQ(status.code(), StatusCode::kInternal);
    EXPECT_EQ(status.message(), "cannot sync '" + path.string() + "': Input/output error");
    EXPECT_EQ(Read(path), "old");
    EXPECT_THAT(Names(), testing::ElementsAre("model.onnx"));
  }
}

TEST_F(AtomicFile, AFileIsSyncedBeforeItHasItsNameAndThenItsFolder) {
  const fs::path path = Path("model.onnx");
  ASSERT_TRUE(WriteFileAtomically(path, "new").ok());
  ASSERT_EQ(synced.size(), 2U);
  EXPECT_THAT(synced[0], testing::StartsWith(path.parent_path().string()));
  EXPECT_NE(synced[0], path);
  EXPECT_EQ(synced[1], fs::canonical(path.parent_path()));
  EXPECT_EQ(Read(path), "new");
  EXPECT_THAT(Names(), testing::ElementsAre("model.onnx"));
}

TEST_F(AtomicFile, AFileThatGetsNoNameLaterHasOneAtOnce) {
  linkat_fails = true;
  const fs::path path = Write("model.onnx", "old");
  ASSERT_TRUE(WriteFileAtomically(path, "new").ok());
  EXPECT_EQ(Read(path), "new");
  EXPECT_THAT(Names(), testing::ElementsAre("model.onnx"));
  EXPECT_THAT(synced[synced.size() - 2], testing::HasSubstr(".model.onnx."));
}

TEST_F(AtomicFile, ACopySharesItsBlocksWhereTheFileSystemCan) {
  const fs::path from = Write("from", "bytes");
  clones = true;
  bool told = false;
  ASSERT_TRUE(CopyFileAtomically(from, Path("to"), [&](uint64_t, uint64_t) { told = true; }).ok());
  EXPECT_EQ(Read(Path("to")), "shared");
  EXPECT_FALSE(told);
}

TEST_F(AtomicFile, ACopyTellsHowFarItIs) {
  const fs::path from = Write("from", std::string(2'500'000, 'x'));
  std::vector<uint64_t> told;
  ASSERT_TRUE(CopyFileAtomically(from, Path("to"), [&](uint64_t done, uint64_t bytes) {
                EXPECT_EQ(bytes, 2'500'000U);
                told.push_back(done);
              }).ok());
  EXPECT_EQ(Read(Path("to")), Read(from));
  EXPECT_GE(told.size(), 3U);
  EXPECT_TRUE(std::is_sorted(told.begin(), told.end()));
  EXPECT_EQ(told.back(), 2'500'000U);
}

TEST_F(AtomicFile, ACopyHasTheHolesOfTheOriginal) {
  constexpr off_t kHole = 1 << 22;
  const fs::path from = Write("from", "head");
  fs::resize_file(from, kHole);
  std::ofstream(from, std::ios::app) << "middle";
  fs::resize_file(from, 2 * kHole);
  ASSERT_TRUE(CopyFileAtomically(from, Path("to")).ok());
  EXPECT_EQ(fs::file_size(Path("to")), static_cast<uintmax_t>(2 * kHole));
  EXPECT_EQ(Read(Path("to")), Read(from));
  struct stat copy = {};
  ASSERT_EQ(::stat(Path("to").c_str(), &copy), 0);
  EXPECT_LT(copy.st_blocks * 512, kHole / 8);
}

TEST_F(AtomicFile, AnEmptyFileIsCopied) {
  ASSERT_TRUE(CopyFileAtomically(Write("from", ""), Path("to")).ok());
  EXPECT_EQ(fs::file_size(Path("to")), 0U);
}

TEST_F(AtomicFile, AFileThatCannotBeReadIsNamed) {
  const Status status = CopyFileAtomically("no/such/file", Path("to"));
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_EQ(status.message(), "cannot read 'no/such/file': No such file or directory");
}

TEST_F(AtomicFile, ANewFileHasTheModeThatTheUmaskLeaves) {
  const mode_t before = ::umask(027);
  const Status status = WriteFileAtomically(Path("new"), "text");
  EXPECT_EQ(::umask(before), 027U);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(fs::status(Path("new")).permissions(), fs::perms(0640));
}

TEST_F(AtomicFile, AFileThatIsReplacedHandsItsPermissionsOn) {
  for (const unsigned mode : {0600U, 0444U, 0777U}) {
    const fs::path path = Write("old", "old");
    fs::permissions(path, fs::perms(mode));
    ASSERT_TRUE(WriteFileAtomically(path, "new").ok());
    EXPECT_EQ(Read(path), "new");
    EXPECT_EQ(fs::status(path).permissions(), fs::perms(mode));
    fs::remove(path);
  }
}

TEST_F(AtomicFile, WhatIsNoFileIsNotReplaced) {
  const fs::path pipe = Path("pipe");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const fs::path from = Write("from", "bytes");
  for (const Status& status : {WriteFileAtomically(pipe, "new"), CopyFileAtomically(from, pipe)}) {
    EXPECT_EQ(status.code(), StatusCode::kInvalidInput);
    EXPECT_EQ(status.message(), "'" + pipe.string() + "': is a device or a pipe; needs a file");
  }
  EXPECT_TRUE(fs::is_fifo(pipe));
  EXPECT_EQ(CheckReplaceable(Path("")).message(), "'" + Path("").string() + "': names no file");
  EXPECT_EQ(CheckReplaceable(Path(".")).message(), "'" + Path(".").string() + "': is a folder");
  EXPECT_TRUE(CheckReplaceable(Path("new")).ok());
}

TEST_F(AtomicFile, ALinkThatIsReplacedLeavesWhatItLedTo) {
  const fs::path blob = Write("blob", "old");
  fs::create_symlink("blob", Path("model.onnx"));
  ASSERT_TRUE(WriteFileAtomically(Path("model.onnx"), "new").ok());
  EXPECT_FALSE(fs::is_symlink(Path("model.onnx")));
  EXPECT_EQ(Read(Path("model.onnx")), "new");
  EXPECT_EQ(Read(blob), "old");
}

}  // namespace
}  // namespace kvshare::graph
