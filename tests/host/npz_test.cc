#include "host/npz.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

namespace kvshare::host {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kGolden = std::string(KVSHARE_TEST_DATA) + "/head_shared_gqa/golden.npz";

std::vector<std::byte> Bytes(std::string_view text) {
  const auto* begin = reinterpret_cast<const std::byte*>(text.data());
  return {begin, begin + text.size()};
}

// A version 1 .npy file.
std::vector<std::byte> Npy(std::string_view header, size_t data_bytes) {
  std::string text = "\x93NUMPY";
  text += {1, 0, static_cast<char>(header.size()), 0};
  text += header;
  text.append(data_bytes, '\1');
  return Bytes(text);
}

std::string FileContent(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class TemporaryFile {
 public:
  explicit TemporaryFile(std::string_view content)
      : path_(std::filesystem::temp_directory_path() /
              ("kvshare_npz_" + std::to_string(::getpid()) + "_" + std::to_string(++count_) + ".npz")) {
    std::ofstream(path_, std::ios::binary) << content;
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  std::string path() const { return path_.string(); }

 private:
  static inline int count_ = 0;
  std::filesystem::path path_;
};

void ExpectRefused(const std::vector<std::byte>& bytes, const std::string& reason) {
  const auto array = ParseNpy(bytes, "'a.npy'");
  ASSERT_FALSE(array.ok());
  EXPECT_EQ(array.status().code(), StatusCode::kInvalidInput);
  EXPECT_THAT(array.status().message(), HasSubstr(reason));
}

TEST(Npz, ReadsTheGoldenFileOfACase) {
  const auto golden = ReadNpz(kGolden);
  ASSERT_TRUE(golden.ok()) << golden.status().message();
  EXPECT_EQ(golden->at("input_ids").type, DType::kI64);
  EXPECT_THAT(golden->at("input_ids").shape, ElementsAre(1, 29));
  EXPECT_EQ(golden->at("prefill_logits").type, DType::kF32);
  EXPECT_THAT(golden->at("prefill_logits").shape, ElementsAre(1, 29, 160));
  EXPECT_EQ(golden->at("lens").At(0), 29);
  EXPECT_EQ(golden->at("decode_attention_mask_0").At(29), 1);
}

TEST(Npz, PartDropsTheFirstAxis) {
  const auto golden = ReadNpz(kGolden);
  ASSERT_TRUE(golden.ok());
  const Tensor& logits = golden->at("decode_logits");
  const Tensor third = logits.Part(2);
  EXPECT_THAT(third.shape, ElementsAre(1, 160));
  EXPECT_EQ(third.At(7), logits.At(2 * 160 + 7));
}

TEST(Npz, EveryTruncationIsAnErrorAndNeverACrash) {
  const std::string whole = FileContent(kGolden);
  for (size_t length = 0; length < whole.size(); length += whole.size() / 97 + 1) {
    const TemporaryFile file(whole.substr(0, length));
    EXPECT_FALSE(ReadNpz(file.path()).ok()) << "first " << length << " bytes";
  }
}

TEST(Npz, AFlippedByteIsAnErrorOrChangesNoMoreThanAName) {
  const std::string whole = FileContent(kGolden);
  const auto sound = ReadNpz(kGolden);
  ASSERT_TRUE(sound.ok()) << sound.status().message();
  int refused = 0;
  for (size_t at = 0; at < whole.size(); at += whole.size() / 151 + 1) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x5A);
    const TemporaryFile file(damaged);
    const auto read = ReadNpz(file.path());
    refused += read.ok() ? 0 : 1;
    if (!read.ok()) continue;
    size_t same = 0;
    for (const auto& [name, tensor] : *read)
      same += sound->contains(name) && sound->at(name).shape == tensor.shape && sound->at(name).data == tensor.data;
    EXPECT_EQ(read->size(), sound->size()) << "byte " << at;
    EXPECT_GE(same + 1, sound->size()) << "byte " << at;
  }
  EXPECT_GT(refused, 100);  // checksums cover the data; names and redundant header fields may change unseen
}

TEST(Npz, MissingFileIsNamed) {
  const auto golden = ReadNpz("no/such/golden.npz");
  ASSERT_FALSE(golden.ok());
  EXPECT_THAT(golden.status().message(), HasSubstr("cannot read 'no/such/golden.npz': "));
}

// The central directory's size of the first entry, which is all that is believed before the data are read.
std::string WithClaimedSize(std::string archive, uint32_t size) {
  const size_t entry = archive.find("PK\1\2");
  for (size_t i = 0; i < 4; ++i) archive[entry + 24 + i] = static_cast<char>(size >> (8 * i));
  return archive;
}

TEST(Npz, ASizeThatIsALieIsAnError) {
  const std::string whole = FileContent(kGolden);
  const TemporaryFile huge(WithClaimedSize(whole, 0x80000001U));
  EXPECT_THAT(ReadNpz(huge.path()).status().message(),
              HasSubstr("claims 2147483649 bytes; the most beside the arrays before it is 2147483648"));
  const TemporaryFile longer(WithClaimedSize(whole, 1 << 20));
  EXPECT_THAT(ReadNpz(longer.path()).status().message(),
              HasSubstr(".npy' in '" + longer.path() + "' is truncated or damaged"));
}

TEST(Npz, ArraysHaveALimitTogether) {
  constexpr uint64_t kMost = 10000;  // more than any of its small arrays, less than all of them
  EXPECT_THAT(ReadNpz(kGolden, kMost).status().message(), HasSubstr("bytes; the most beside the arrays before it is "));
}

TEST(Npz, AnArrayThatIsThereTwiceIsAnError) {
  std::string archive = FileContent(kGolden);
  // In the central directory, which is what counts: two names of one length become one.
  const size_t second = archive.find("decode_attention_mask_1.npy", archive.find("PK\1\2"));
  ASSERT_NE(second, std::string::npos);
  archive[second + std::string_view("decode_attention_mask_").size()] = '0';
  const TemporaryFile twice(archive);
  EXPECT_THAT(ReadNpz(twice.path()).status().message(),
              HasSubstr("'decode_attention_mask_0.npy' in '" + twice.path() + "' is there twice"));
}

TEST(Npy, ReadsEveryType) {
  const std::pair<const char*, DType> types[] = {
      {"<f4", DType::kF32}, {"<f2", DType::kF16}, {"<i8", DType::kI64}, {"<i4", DType::kI32}, {"|b1", DType::kBool}};
  for (const auto& [descr, type] : types) {
    const std::string header = std::string("{'descr': '") + descr + "', 'fortran_order': False, 'shape': (2, 3), }\n";
    const auto array = ParseNpy(Npy(header, 6 * SizeOf(type)), descr);
    ASSERT_TRUE(array.ok()) << array.status().message();
    EXPECT_EQ(array->type, type);
    EXPECT_THAT(array->shape, ElementsAre(2, 3));
    EXPECT_EQ(array->data, std::vector(6 * SizeOf(type), std::byte{1}));
  }
}

TEST(Npy, ReadsScalarsVectorsAndEmptyArrays) {
  const auto read = [](const char* shape, size_t bytes) {
    return ParseNpy(Npy(std::string("{'descr': '<i4', 'fortran_order': False, 'shape': ") + shape + ", }", bytes), "a");
  };
  EXPECT_THAT(read("()", 4)->shape, ElementsAre());
  EXPECT_THAT(read("(5,)", 20)->shape, ElementsAre(5));
  EXPECT_THAT(read("(1, 0, 8)", 0)->shape, ElementsAre(1, 0, 8));
}

TEST(Npy, RefusesWhatItCannotRepresent) {
  ExpectRefused(Npy("{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }", 4),
                "'a.npy' has type '>f4'; needs <f4, <f2, <i8, <i4 or |b1");
  ExpectRefused(Npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", 8), "type '|O'");
  ExpectRefused(Npy("{'descr': '<f4', 'fortran_order': True, 'shape': (1,), }", 4),
                "'a.npy' is in Fortran order; needs C order");
}

TEST(Npy, RefusesGarbledHeaders) {
  ExpectRefused(Bytes("PK"), "not a .npy array");
  ExpectRefused(Bytes("\x93NUMPY\x09"), "not a .npy array");
  ExpectRefused(Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, }", 4), "no readable");
  ExpectRefused(Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", 4), "no readable");
  ExpectRefused(Npy("{'descr': '<f4", 4), "'a.npy' has no readable 'descr' and 'shape'");
  ExpectRefused(Npy("{'descr':", 0), "no readable");
  ExpectRefused(Npy("", 0), "no readable");
  std::vector<std::byte> long_header = Npy("{}", 0);
  long_header[9] = std::byte{0x7F};
  ExpectRefused(long_header, "'a.npy' has a header of 32514 bytes; 2 are there");
  std::vector<std::byte> version = Npy("{}", 0);
  version[6] = std::byte{4};
  ExpectRefused(version, "'a.npy' has .npy version 4; needs 1, 2 or 3");
  version[6] = std::byte{2};
  version.resize(10);
  ExpectRefused(version, "'a.npy' is truncated");
}

TEST(Npy, RefusesDataOfAnotherSizeThanTheShape) {
  ExpectRefused(Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", 11),
                "'a.npy' has 11 bytes of data; shape [3] needs 12");
  ExpectRefused(Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", 13), "needs 12");
  ExpectRefused(Npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }", 4),
                "shape [4611686018427387904, 4] has more elements than memory can hold");
  const auto negative = BytesOf(DType::kF32, {2, -1});
  EXPECT_EQ(negative.status().message(), "shape [2, -1] has a negative extent");
}

}  // namespace
}  // namespace kvshare::host
