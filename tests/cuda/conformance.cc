// What each wrapper of gpu.h gives for random inputs: conformance FILE writes it, conformance FILE --compare holds it
// against what another build wrote. scripts/gpu_check.sh builds it for the emulator, and by nvcc for the card.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "core/half.h"
#include "cuda/gpu.h"
#include "cuda/launch.h"
#include "cuda/runtime.h"

namespace kvshare::cuda {
namespace {

constexpr int kThreads = 64;  // two warps, so that a team has someone to wait for
constexpr int kInput = 16;    // random words of a thread
constexpr int kRow = 16;      // words of shared memory of a thread

// How a wrapper's words are compared. What is computed may be rounded in another way.
enum class Compare : uint8_t { kBits, kF32, kTwoF16, kTwoBF16 };

// What a thread writes, in this order.
struct Section {
  const char* wrapper;
  int words;
  Compare how = Compare::kBits;
};
constexpr Section kSections[] = {
    {"Thread, Threads, Block, Grid", 1},
    {"LdMatrix", 4},
    {"LdMatrixTrans", 4},
    {"LoadShared", 4},
    {"MovMatrixTrans", 1},
    {"Ballot", 1},
    {"CountBits", 1},
    {"PickBytes", 1},
    {"Shuffle", 1},
    {"ShuffleXor", 1},
    {"SyncTeam", 1},
    {"SyncThreads", 1},
    {"CopyAsync of 16 bytes, CopyWait<1>", 4},
    {"CopyAsync of 8 bytes, CopyWait<0>", 4},
    {"Pack2<Half>", 1},
    {"Pack2<BF16>", 1},
    {"Widen<Half>", 1},
    {"Widen<BF16>", 1},
    {"WidenE4M3<Half>", 1},
    {"WidenE4M3<BF16>", 1},
    {"Round", 1},
    {"MultiplyAdd2<Half>", 1, Compare::kTwoF16},
    {"MultiplyAdd2<BF16>", 1, Compare::kTwoBF16},
    {"Mma<Half>", 4, Compare::kF32},
    {"Mma<BF16>", 4, Compare::kF32},
    {"Exp2", 1, Compare::kF32},
    {"Tanh", 1, Compare::kF32},
    {"Rsqrt", 1, Compare::kF32},
};
constexpr int WordsOfThread() {
  int words = 0;
  for (const Section& section : kSections) words += section.words;
  return words;
}
constexpr int kWords = WordsOfThread();

// Writes the words of one thread.
struct Words {
  uint32_t* next;
  GPU_FN void Put(uint32_t word) { *next++ = word; }
  GPU_FN void PutAll(const uint32_t (&words)[4]) {
    for (const uint32_t word : words) Put(word);
  }
};

template <typename T>
GPU_FN void PutProducts(Words& out, const uint32_t* in) {
  const uint32_t a[4] = {in[0], in[1], in[2], in[3]}, b[2] = {in[4], in[5]};
  float c[4] = {0.5F, -1.0F, 2.0F, 0.0F};
  gpu::Mma<T>(c, a, b);
  for (const float x : c) out.Put(gpu::BitsOf(x));
}

GPU_KERNEL(kThreads, 1) WrapperKernel(const uint32_t* input, uint32_t* output) {
  const int thread = gpu::Thread();
  const uint32_t* const half = input + thread * kInput;  // pairs of f16 numbers
  const uint32_t* const bf16 = input + (kThreads + thread) * kInput;
  auto* const shared = reinterpret_cast<uint32_t*>(gpu::Shared());
  auto* const row = shared + thread * kRow;
  Words out{output + thread * kWords};
  out.Put(static_cast<uint32_t>(thread | gpu::Threads() << 8) | gpu::Block().x << 16 | gpu::Grid().x << 24);
  for (int i = 0; i < 4; ++i) row[i] = half[i];
  gpu::SyncWarp();
  uint32_t r[4];
  gpu::LdMatrix(r, row);
  out.PutAll(r);
  gpu::LdMatrixTrans(r, row);
  out.PutAll(r);
  float four[4];
  gpu::LoadShared(four, reinterpret_cast<const float*>(row));
  for (const float x : four) out.Put(gpu::BitsOf(x));
  out.Put(gpu::MovMatrixTrans(half[5]));
  out.Put(gpu::Ballot(half[7] % 2 == 0));
  out.Put(static_cast<uint32_t>(gpu::CountBits(half[7])));
  out.Put(gpu::PickBytes(half[7], 0x4203));
  const float x = gpu::Widen<gpu::Half>(static_cast<uint16_t>(half[6]));
  const float y = gpu::Widen<gpu::BF16>(static_cast<uint16_t>(bf16[6]));
  out.Put(gpu::BitsOf(gpu::Shuffle(x, 7)));
  out.Put(gpu::BitsOf(gpu::ShuffleXor(x, 13)));
  row[4] = half[10];
  gpu::SyncTeam(0, 2);
  out.Put(shared[(thread ^ 33) * kRow + 4]);
  row[5] = half[11];
  gpu::SyncThreads();
  out.Put(shared[(kThreads - 1 - thread) * kRow + 5]);
  gpu::CopyAsync(row + 8, half + 4, 16);
  gpu::CopyCommit();
  gpu::CopyAsync(row + 12, half + 8, 8);
  gpu::CopyCommit();
  gpu::CopyWait<1>();
  for (int i = 8; i < 12; ++i) out.Put(row[i]);
  gpu::CopyWait<0>();
  for (int i = 12; i < 16; ++i) out.Put(row[i]);
  out.Put(gpu::Pack2<gpu::Half>(x * 1.1F, y));
  out.Put(gpu::Pack2<gpu::BF16>(x * 1.1F, y));
  out.Put(gpu::BitsOf(x));
  out.Put(gpu::BitsOf(y));
  const uint32_t codes = half[9] & 0xF7F7;  // none is a NaN, whose bits may differ
  out.Put(gpu::WidenE4M3<gpu::Half>(codes, 1, 0));
  out.Put(gpu::WidenE4M3<gpu::BF16>(codes, 0, 1));
  out.Put(gpu::BitsOf(gpu::Round(x * 8.0F)));
  out.Put(gpu::MultiplyAdd2<gpu::Half>(half[7], half[8], half[9]));
  out.Put(gpu::MultiplyAdd2<gpu::BF16>(bf16[7], bf16[8], bf16[9]));
  PutProducts<gpu::Half>(out, half);
  PutProducts<gpu::BF16>(out, bf16);
  out.Put(gpu::BitsOf(gpu::Exp2(x)));
  out.Put(gpu::BitsOf(gpu::Tanh(x)));
  out.Put(gpu::BitsOf(gpu::Rsqrt(x * x + 1.0F)));
}

std::vector<uint32_t> Input() {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 1);
  std::vector<uint32_t> words(2 * kThreads * kInput);
  for (size_t i = 0; i < words.size(); ++i) {
    const auto narrow = [&](float x) -> uint32_t { return i < words.size() / 2 ? F16FromF32(x) : BF16FromF32(x); };
    const uint32_t low = narrow(normal(random));
    words[i] = low | narrow(normal(random)) << 16;
  }
  return words;
}

Status Run(std::vector<uint32_t>& output) {
  const std::vector<uint32_t> input = Input();
  output.assign(static_cast<size_t>(kThreads) * kWords, 0);
  KVSHARE_ASSIGN_OR_RETURN(void* const from, Allocate(input.size() * 4));
  KVSHARE_ASSIGN_OR_RETURN(void* const to, Allocate(output.size() * 4));
  KVSHARE_RETURN_IF_ERROR(Upload(from, input.data(), input.size() * 4));
  const LaunchShape shape{{1}, kThreads, size_t{kThreads} * kRow * 4};
  KVSHARE_RETURN_IF_ERROR(
      Launch(&WrapperKernel, shape, nullptr, static_cast<const uint32_t*>(from), static_cast<uint32_t*>(to)));
  KVSHARE_RETURN_IF_ERROR(Synchronize(nullptr));
  KVSHARE_RETURN_IF_ERROR(Download(output.data(), to, output.size() * 4));
  KVSHARE_RETURN_IF_ERROR(Free(from));
  return Free(to);
}

bool Near(float a, float b, float tolerance) {
  return std::fabs(a - b) <= tolerance * std::fmax(1.0F, std::fabs(a));  // not so where one is NaN
}

bool Agree(uint32_t a, uint32_t b, Compare how) {
  if (a == b) return true;
  const auto halves_agree = [&](float (*widen)(uint16_t), float tolerance) {
    return Near(widen(static_cast<uint16_t>(a)), widen(static_cast<uint16_t>(b)), tolerance) &&
           Near(widen(static_cast<uint16_t>(a >> 16)), widen(static_cast<uint16_t>(b >> 16)), tolerance);
  };
  switch (how) {
    case Compare::kBits: return false;
    case Compare::kF32: {
      float x = 0, y = 0;
      std::memcpy(&x, &a, 4);
      std::memcpy(&y, &b, 4);
      return Near(x, y, 0x1p-10F);
    }
    case Compare::kTwoF16: return halves_agree(&F32FromF16, 0x1p-10F);
    case Compare::kTwoBF16: return halves_agree(&F32FromBF16, 0x1p-7F);
  }
  return false;
}

// Prints the words that differ; returns how many.
int CompareAll(const std::vector<uint32_t>& mine, const std::vector<uint32_t>& theirs) {
  int wrong = 0;
  for (int thread = 0; thread < kThreads; ++thread) {
    int at = thread * kWords;
    for (const Section& section : kSections)
      for (int word = 0; word < section.words; ++word, ++at)
        if (!Agree(theirs[at], mine[at], section.how) && wrong++ < 20)
          std::printf("%s: word %d of thread %d is %08x here, %08x in the file\n", section.wrapper, word, thread,
                      mine[at], theirs[at]);
  }
  return wrong;
}

int Main(const char* path, bool compare) {
  std::vector<uint32_t> mine;
  const Status status = Run(mine);
  if (!status.ok()) {
    std::fprintf(stderr, "conformance: %s\n", status.message().c_str());
    return 1;
  }
  std::FILE* const file = std::fopen(path, compare ? "rb" : "wb");
  std::vector<uint32_t> theirs(mine.size() + 1);  // a longer file is not ours
  size_t words = 0;
  if (file != nullptr) {
    words =
        compare ? std::fread(theirs.data(), 4, theirs.size(), file) : std::fwrite(mine.data(), 4, mine.size(), file);
    std::fclose(file);
  }
  if (words != mine.size()) {
    std::fprintf(stderr, "conformance: '%s' %s %zu words; needs %zu\n", path, compare ? "has" : "took", words,
                 mine.size());
    return 1;
  }
  if (!compare) {
    std::printf("conformance: %zu words of %zu wrappers written\n", words, std::size(kSections));
    return 0;
  }
  const int wrong = CompareAll(mine, theirs);
  std::printf("conformance: %d of %zu words differ\n", wrong, words);
  return wrong == 0 ? 0 : 1;
}

}  // namespace
}  // namespace kvshare::cuda

int main(int count, char** arguments) {
  if (count < 2) return 64;
  return kvshare::cuda::Main(arguments[1], count > 2 && std::string(arguments[2]) == "--compare");
}
