// What each wrapper of gpu.h gives for random inputs: conformance FILE writes it, conformance FILE --compare holds it
// against what another build wrote. scripts/gpu_check.sh builds it for the emulator, and by nvcc for the card.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/half.h"
#include "cuda/gpu.h"
#include "cuda/launch.h"
#include "cuda/runtime.h"

namespace kvshare::cuda {
namespace {

constexpr int kLanes = 32;
// Of a lane, in words: four of each LdMatrix and of LoadShared, one MovMatrixTrans, one Ballot, one PickBytes, four of
// each Mma, two shuffles, Pack2, Widen, MultiplyAdd2 and WidenE4M3 of both types, four of CopyAsync, Exp2, Tanh, Rsqrt.
constexpr int kWords = 4 + 4 + 4 + 1 + 1 + 1 + 4 + 4 + 2 + 8 + 4 + 3;
constexpr int kExact = 4 + 4 + 4 + 1 + 1 + 1;  // the first ones are moved, not computed
constexpr int kInput = 16;                     // random words of a lane

template <typename T>
GPU_FN void MultiplyWords(uint32_t* out, const uint32_t* in) {
  const uint32_t a[4] = {in[0], in[1], in[2], in[3]}, b[2] = {in[4], in[5]};
  float c[4] = {0.5F, -1.0F, 2.0F, 0.0F};
  gpu::Mma<T>(c, a, b);
  for (int i = 0; i < 4; ++i) out[i] = gpu::BitsOf(c[i]);
}

GPU_KERNEL(kLanes, 1) WrapperKernel(const uint32_t* input, uint32_t* output) {
  const int lane = gpu::Thread();
  const uint32_t* const half = input + lane * kInput;  // pairs of f16 numbers
  const uint32_t* const bf16 = input + (kLanes + lane) * kInput;
  uint32_t* out = output + lane * kWords;
  auto* const row = reinterpret_cast<uint32_t*>(gpu::Shared()) + lane * 8;
  for (int i = 0; i < 4; ++i) row[i] = half[i];
  gpu::SyncWarp();
  uint32_t r[4];
  gpu::LdMatrix(r, row);
  for (int i = 0; i < 4; ++i) *out++ = r[i];
  gpu::LdMatrixTrans(r, row);
  for (int i = 0; i < 4; ++i) *out++ = r[i];
  float four[4];
  gpu::LoadShared(four, reinterpret_cast<const float*>(row));
  for (int i = 0; i < 4; ++i) *out++ = gpu::BitsOf(four[i]);
  *out++ = gpu::MovMatrixTrans(half[5]);
  *out++ = gpu::Ballot(half[7] % 2 == 0);
  *out++ = gpu::PickBytes(half[7], 0x4203);
  MultiplyWords<gpu::Half>(out, half);
  MultiplyWords<gpu::BF16>(out + 4, bf16);
  out += 8;
  const float x = gpu::Widen<gpu::Half>(static_cast<uint16_t>(half[6]));
  const float y = gpu::Widen<gpu::BF16>(static_cast<uint16_t>(bf16[6]));
  *out++ = gpu::BitsOf(gpu::Shuffle(x, 7));
  *out++ = gpu::BitsOf(gpu::ShuffleXor(x, 13));
  *out++ = gpu::Pack2<gpu::Half>(x * 1.1F, y);
  *out++ = gpu::Pack2<gpu::BF16>(x * 1.1F, y);
  *out++ = gpu::BitsOf(x);
  *out++ = gpu::BitsOf(y);
  *out++ = gpu::MultiplyAdd2<gpu::Half>(half[7], half[8], half[9]);
  *out++ = gpu::MultiplyAdd2<gpu::BF16>(bf16[7], bf16[8], bf16[9]);
  const uint32_t codes = half[9] & 0xF7F7;  // none is a NaN, whose bits may differ
  *out++ = gpu::WidenE4M3<gpu::Half>(codes, 1, 0);
  *out++ = gpu::WidenE4M3<gpu::BF16>(codes, 0, 1);
  gpu::CopyAsync(row + 4, half + 4, 8);
  gpu::CopyCommit();
  gpu::CopyWait<0>();
  for (int i = 0; i < 4; ++i) *out++ = row[4 + i];
  *out++ = gpu::BitsOf(gpu::Exp2(x));
  *out++ = gpu::BitsOf(gpu::Tanh(x));
  *out++ = gpu::BitsOf(gpu::Rsqrt(x * x + 1.0F));
}

std::vector<uint32_t> Input() {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 1);
  std::vector<uint32_t> words(2 * kLanes * kInput);
  for (size_t i = 0; i < words.size(); ++i) {
    const auto narrow = [&](float x) -> uint32_t { return i < words.size() / 2 ? F16FromF32(x) : BF16FromF32(x); };
    const uint32_t low = narrow(normal(random));
    words[i] = low | narrow(normal(random)) << 16;
  }
  return words;
}

Status Run(std::vector<uint32_t>& output) {
  const std::vector<uint32_t> input = Input();
  output.assign(static_cast<size_t>(kLanes) * kWords, 0);
  KVSHARE_ASSIGN_OR_RETURN(void* const from, Allocate(input.size() * 4));
  KVSHARE_ASSIGN_OR_RETURN(void* const to, Allocate(output.size() * 4));
  KVSHARE_RETURN_IF_ERROR(Upload(from, input.data(), input.size() * 4));
  const LaunchShape shape{{1}, kLanes, size_t{kLanes} * 32};
  KVSHARE_RETURN_IF_ERROR(
      Launch(&WrapperKernel, shape, nullptr, static_cast<const uint32_t*>(from), static_cast<uint32_t*>(to)));
  KVSHARE_RETURN_IF_ERROR(Synchronize(nullptr));
  KVSHARE_RETURN_IF_ERROR(Download(output.data(), to, output.size() * 4));
  KVSHARE_RETURN_IF_ERROR(Free(from));
  return Free(to);
}

// Moved words by bits, computed ones (all but packed pairs, which are moved, too) within 2^-10.
bool Agree(uint32_t a, uint32_t b, int word) {
  if (a == b) return true;
  if (word < kExact) return false;
  float x = 0, y = 0;
  std::memcpy(&x, &a, 4);
  std::memcpy(&y, &b, 4);
  return std::fabs(x - y) <= 0x1p-10F * std::fmax(1.0F, std::fabs(x));
}

int Main(const char* path, bool compare) {
  std::vector<uint32_t> mine;
  const Status status = Run(mine);
  if (!status.ok()) {
    std::fprintf(stderr, "conformance: %s\n", status.message().c_str());
    return 1;
  }
  std::FILE* const file = std::fopen(path, compare ? "rb" : "wb");
  if (file == nullptr) return 1;
  std::vector<uint32_t> theirs(mine.size());
  const size_t words =
      compare ? std::fread(theirs.data(), 4, theirs.size(), file) : std::fwrite(mine.data(), 4, mine.size(), file);
  std::fclose(file);
  if (words != mine.size()) return 1;
  int wrong = 0;
  for (size_t i = 0; compare && i < mine.size(); ++i) {
    const int word = static_cast<int>(i) % kWords;
    if (Agree(theirs[i], mine[i], word)) continue;
    if (wrong++ < 20)
      std::printf("lane %d word %d: %08x here, %08x in %s\n", static_cast<int>(i) / kWords, word, mine[i], theirs[i],
                  path);
  }
  std::printf("conformance: %d of %zu words differ\n", wrong, mine.size());
  return wrong == 0 ? 0 : 1;
}

}  // namespace
}  // namespace kvshare::cuda

int main(int count, char** arguments) {
  if (count < 2) return 64;
  return kvshare::cuda::Main(arguments[1], count > 2 && std::string(arguments[2]) == "--compare");
}
