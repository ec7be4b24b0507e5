// Bytes -> .npz, and its first array's reader alone, which checksums do not shield. What is read must be whole.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "host/npz.h"

namespace {

void Use(const kvshare::Tensor& tensor) {
  if (tensor.data.size() != static_cast<size_t>(tensor.Elements()) * kvshare::SizeOf(tensor.type)) std::abort();
  double sum = 0;
  for (int64_t i = 0; i < tensor.Elements(); ++i) sum += tensor.At(i);
  if (!tensor.shape.empty() && tensor.shape[0] > 0)
    sum += static_cast<double>(tensor.Part(tensor.shape[0] - 1).Elements());
  [[maybe_unused]] volatile double used = sum;
}

// A file of this process, gone with it.
struct TemporaryFile {
  std::string path = (std::filesystem::temp_directory_path() / "kvshare-fuzz-XXXXXX").string();
  TemporaryFile() {
    if (mkstemp(path.data()) < 0) std::abort();
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() { std::filesystem::remove(path); }
};

const std::string& File() {
  static const TemporaryFile file;
  return file.path;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (const auto array = kvshare::host::ParseNpy({reinterpret_cast<const std::byte*>(data), size}, "input"); array.ok())
    Use(*array);
  std::ofstream(File(), std::ios::binary)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  if (const auto arrays = kvshare::host::ReadNpz(File()); arrays.ok())
    for (const auto& [name, tensor] : *arrays) Use(tensor);
  return 0;
}
