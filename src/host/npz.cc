#include "host/npz.h"

#include <fmt/format.h>
#include <zip.h>

#include <charconv>
#include <cstring>
#include <memory>
#include <optional>
#include <string_view>

namespace kvshare::host {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";

struct ZipClose {
  void operator()(zip_t* archive) const { zip_discard(archive); }
  void operator()(zip_file_t* file) const { zip_fclose(file); }
};

std::optional<DType> TypeOf(std::string_view descr) {
  if (descr == "<f4") return DType::kF32;
  if (descr == "<f2") return DType::kF16;
  if (descr == "<i8") return DType::kI64;
  if (descr == "<i4") return DType::kI32;
  if (descr == "|b1") return DType::kBool;
  return std::nullopt;
}

// The text behind `'key':` in the header's dictionary, blanks skipped; empty where there is no such key.
std::string_view ValueOf(std::string_view header, std::string_view key) {
  const std::string quoted = fmt::format("'{}':", key);
  const size_t at = header.find(quoted);
  if (at == std::string_view::npos) return {};
  std::string_view rest = header.substr(at + quoted.size());
  const size_t begin = rest.find_first_not_of(' ');
  return begin == std::string_view::npos ? std::string_view{} : rest.substr(begin);
}

// "'<f4', ..." -> <f4
std::optional<std::string_view> QuotedText(std::string_view text) {
  if (text.empty() || text.front() != '\'') return std::nullopt;
  const size_t end = text.find('\'', 1);
  if (end == std::string_view::npos) return std::nullopt;
  return text.substr(1, end - 1);
}

// "(1, 29), ..." -> {1, 29};  "(8,)" -> {8};  "()" -> {}
std::optional<std::vector<int64_t>> Tuple(std::string_view text) {
  if (text.empty() || text.front() != '(') return std::nullopt;
  text.remove_prefix(1);
  std::vector<int64_t> extents;
  while (true) {
    while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
    if (text.empty()) return std::nullopt;
    if (text.front() == ')') return extents;
    int64_t extent = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), extent);
    if (error != std::errc{} || extent < 0) return std::nullopt;
    extents.push_back(extent);
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    if (!text.empty() && text.front() == ',') {
      text.remove_prefix(1);
    } else if (text.empty() || text.front() != ')') {
      return std::nullopt;
    }
  }
}

uint32_t LittleEndian(std::span<const std::byte> bytes) {
  uint32_t value = 0;
  for (size_t i = bytes.size(); i-- > 0;) value = (value << 8) | std::to_integer<uint32_t>(bytes[i]);
  return value;
}

// `most`: how many bytes it may have.
Result<std::vector<std::byte>> ReadEntry(zip_t* archive, zip_uint64_t index, const std::string& label, uint64_t most) {
  zip_stat_t stat;
  if (zip_stat_index(archive, index, 0, &stat) != 0 || (stat.valid & ZIP_STAT_SIZE) == 0) {
    return Status::InvalidInput(fmt::format("{}: {}", label, zip_strerror(archive)));
  }
  if (stat.size > most) {
    return Status::InvalidInput(
        fmt::format("{} claims {} bytes; the most beside the arrays before it is {}", label, stat.size, most));
  }
  const std::unique_ptr<zip_file_t, ZipClose> file(zip_fopen_index(archive, index, 0));
  if (file == nullptr) return Status::InvalidInput(fmt::format("{}: {}", label, zip_strerror(archive)));
  // In pieces: a directory that lies about the size costs no more memory than the file really holds.
  constexpr size_t kPiece = 1 << 20;
  std::vector<std::byte> bytes;
  while (bytes.size() < stat.size) {
    const size_t begin = bytes.size();
    bytes.resize(begin + std::min<size_t>(kPiece, stat.size - begin));
    const zip_int64_t got = zip_fread(file.get(), bytes.data() + begin, bytes.size() - begin);
    if (got <= 0) return Status::InvalidInput(fmt::format("{} is truncated or damaged", label));
    bytes.resize(begin + static_cast<size_t>(got));
  }
  // libzip checks an entry's checksum when its end is read.
  std::byte past_the_end;
  if (zip_fread(file.get(), &past_the_end, 1) != 0) {
    return Status::InvalidInput(fmt::format("{}: {}", label, zip_file_strerror(file.get())));
  }
  return bytes;
}

}  // namespace

Result<Tensor> ParseNpy(std::span<const std::byte> bytes, const std::string& label) {
  constexpr size_t kVersionEnd = 8;
  if (bytes.size() < kVersionEnd + 2 || std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    return Status::InvalidInput(fmt::format("{} is not a .npy array", label));
  }
  const auto version = std::to_integer<int>(bytes[6]);
  if (version < 1 || version > 3) {
    return Status::InvalidInput(fmt::format("{} has .npy version {}; needs 1, 2 or 3", label, version));
  }
  const size_t length_bytes = version == 1 ? 2 : 4;
  if (bytes.size() < kVersionEnd + length_bytes) return Status::InvalidInput(fmt::format("{} is truncated", label));
  const size_t header_bytes = LittleEndian(bytes.subspan(kVersionEnd, length_bytes));
  const size_t header_begin = kVersionEnd + length_bytes;
  if (header_bytes > bytes.size() - header_begin) {
    return Status::InvalidInput(
        fmt::format("{} has a header of {} bytes; {} are there", label, header_bytes, bytes.size() - header_begin));
  }
  const std::string header(reinterpret_cast<const char*>(bytes.data()) + header_begin, header_bytes);

  const auto descr = QuotedText(ValueOf(header, "descr"));
  const auto shape = Tuple(ValueOf(header, "shape"));
  if (!descr || !shape) return Status::InvalidInput(fmt::format("{} has no readable 'descr' and 'shape'", label));
  const auto type = TypeOf(*descr);
  if (!type) {
    return Status::InvalidInput(fmt::format("{} has type '{}'; needs <f4, <f2, <i8, <i4 or |b1", label, *descr));
  }
  if (!ValueOf(header, "fortran_order").starts_with("False")) {
    return Status::InvalidInput(fmt::format("{} is in Fortran order; needs C order", label));
  }
  const auto want = BytesOf(*type, *shape);
  if (!want.ok()) return Status::InvalidInput(fmt::format("{}: {}", label, want.status().message()));
  const auto data = bytes.subspan(header_begin + header_bytes);
  if (data.size() != *want) {
    return Status::InvalidInput(
        fmt::format("{} has {} bytes of data; shape {} needs {}", label, data.size(), ShapeText(*shape), *want));
  }
  return Tensor{*type, *shape, {data.begin(), data.end()}};
}

Result<NamedTensors> ReadNpz(const std::string& path, uint64_t most) {
  int code = 0;
  // numpy gives stored entries ZIP64 local headers, so the central directory is what counts; libzip reads that one.
  const std::unique_ptr<zip_t, ZipClose> archive(zip_open(path.c_str(), ZIP_RDONLY, &code));
  if (archive == nullptr) {
    zip_error_t error;
    zip_error_init_with_code(&error, code);
    const std::string text = zip_error_strerror(&error);
    zip_error_fini(&error);
    return Status::InvalidInput(fmt::format("cannot read '{}': {}", path, text));
  }
  NamedTensors tensors;
  const zip_int64_t entries = zip_get_num_entries(archive.get(), 0);
  for (zip_int64_t i = 0; i < entries; ++i) {
    const auto index = static_cast<zip_uint64_t>(i);
    const char* entry = zip_get_name(archive.get(), index, 0);
    if (entry == nullptr) return Status::InvalidInput(fmt::format("'{}': {}", path, zip_strerror(archive.get())));
    std::string name = entry;
    const std::string label = fmt::format("'{}' in '{}'", name, path);
    if (!name.ends_with(".npy")) return Status::InvalidInput(fmt::format("{} is not a .npy array", label));
    name.resize(name.size() - 4);
    if (tensors.contains(name)) return Status::InvalidInput(fmt::format("{} is there twice", label));
    KVSHARE_ASSIGN_OR_RETURN(const auto bytes, ReadEntry(archive.get(), index, label, most));
    most -= bytes.size();
    KVSHARE_ASSIGN_OR_RETURN(tensors[name], ParseNpy(bytes, label));
  }
  return tensors;
}

}  // namespace kvshare::host
