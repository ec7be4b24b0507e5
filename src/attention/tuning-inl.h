// Per-target: what the kernels are tuned by, each choice under a name. tuning.h has what does not depend on the target.
#if defined(KVSHARE_ATTENTION_TUNING_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_TUNING_INL_H_
#undef KVSHARE_ATTENTION_TUNING_INL_H_
#else
#define KVSHARE_ATTENTION_TUNING_INL_H_
#endif

#include <hwy/highway.h>

#include "attention/tuning.h"
#include "kvshare/shapes.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

// The targets that choices are made for; Highway gives better targets of one architecture smaller numbers.
inline constexpr bool kIsAvx512 = HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3;
inline constexpr bool kIsAvx2 = HWY_ARCH_X86 && HWY_TARGET == HWY_AVX2;
inline constexpr bool kHasVnni = HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL;
inline constexpr bool kIsNeon = HWY_TARGET_IS_NEON != 0;
// Whether the target's code may multiply bytes four at a time: by VNNI, or by Arm's sdot where HasByteDots().
#define KVSHARE_BYTE_DOTS (HWY_TARGET_IS_NEON || HWY_TARGET <= HWY_AVX3_DL)
// Whether the target's code may multiply matrices of bytes, where HasMatrixProducts().
#define KVSHARE_MATRIX_PRODUCTS (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL)

// Sums that a narrow kernel of weights of that many query rows keeps in registers: 16 of 32 registers, or 8 of 16. NEON
// would spill beside 16 sums of two rows where their eight vectors of V are converted.
constexpr int NarrowSums(int rows, bool converts) { return kIsAvx512 || (kIsNeon && (rows > 2 || !converts)) ? 16 : 8; }

// A pass of the narrow kernel of scores: at most kScoreVectors vectors of sums, of at most kScoreKeys keys. One vector
// of 8 or 16 lanes has as many sums as the multipliers need. Of NEON's four lanes it takes four: 16 sums keep two
// multipliers busy whose results take four cycles, and each load of K or of a query serves several of them.
inline constexpr int kScoreVectors = kIsNeon ? 4 : 1;
inline constexpr int kScoreKeys = kIsNeon ? 4 : 16;

// A pass of the wide kernels of scores: kPassVectors vectors of query rows against kPassKeys keys, whose sums fill 24
// of 32 registers or 12 of 16. The fewer loads a multiplication the better: 12 keys and two vectors reach 82 % of the
// peak, 8 and three 97 %. Of weights: kStripRows rows, kStripVectors vectors of V. NEON multiplies by one lane of a
// register, so that a load brings four cells: those of 8 keys or rows, beside 16 sums.
inline constexpr int kPassVectors = kIsNeon ? 2 : 3;
inline constexpr int kPassKeys = kIsAvx512 || kIsNeon ? 8 : 4;
inline constexpr int kStripRows = kIsNeon ? 8 : 6;
inline constexpr int kStripVectors = kIsAvx512 ? 4 : 2;

// Steps of a pass of the wide kernel of scores from one look for lines to bring to the next: a step of NEON has four
// lanes only.
inline constexpr int64_t kLineSteps = kIsNeon ? 4 : 1;

// Turns of a loop at once. While the core's other thread is at work, instructions are what counts: one at a time, AVX2
// takes 18 for 8 multiplications of scores and 24 for 12 of weights, four at a time 16 and 20.
inline constexpr int kUnroll = 4;
// The same for the narrow kernel of scores: NEON spills where 16 sums of many keys, or of keys that are converted,
// leave few registers.
constexpr int ScoreUnroll(int sums, int keys, bool converts) {
  return kIsNeon && sums == 16 && (keys > 2 || converts) ? 2 : kUnroll;
}
// The same for the narrow kernel of weights, whose turns are longer.
inline constexpr int kCellUnroll = 2;

// Whether pairs of bf16 are multiplied and added by one instruction. HWY_NATIVE_DOT_BF16 is stale where NEON is
// compiled after NEON_BF16 (Highway 1.2.0).
#if HWY_TARGET_IS_NEON
inline constexpr bool kNativeDotBF16 = HWY_NEON_HAVE_F32_TO_BF16C != 0;
#else
inline constexpr bool kNativeDotBF16 = HWY_NATIVE_DOT_BF16 != 0;
#endif

// Whether dot products of K and V of that type are faster than f32 FMA: of bf16, or of bytes (digits-inl.h).
inline bool FastDots(DType type) {
  switch (type) {
    case DType::kBF16: return kNativeDotBF16 && HasFastBF16Dots();
    case DType::kI8:
    case DType::kI4: return kHasVnni || (kIsNeon && HasByteDots());
    default: return false;
  }
}

// The ways in which narrow kernels are built to read f32, f16 and bf16 (tuning.h), beside kTileAhead.
inline constexpr bool kHasSpreads = kIsAvx2 || kIsAvx512;
inline constexpr bool kHasStreams = kIsAvx512;

// Which of them is fastest, as far as measured: docs/decisions/0015. `rows` share each load; `bytes` of K and V are
// brought for them.
inline Reading PreferredReading(Cpu cpu, DType type, int rows, int64_t head_size, int64_t bytes) {
  if (kIsAvx2) return Reading::kSpread;
  if (!kIsAvx512) return Reading::kTileAhead;
  switch (cpu) {
    case Cpu::kZen4: return Reading::kTileAhead;
    case Cpu::kZen5: return Reading::kStream;
    case Cpu::kCommon: break;
  }
  // Spread, sums come and go with every step: that pays where K and V come from memory.
  if (rows <= kSpreadFewRows || (bytes > kKeptBytes && type != DType::kBF16)) return Reading::kSpread;
  const bool streams = head_size <= kShortHead && BytesOf(type, head_size) >= kStreamLeastRow;
  return streams ? Reading::kStream : Reading::kTileAhead;
}

// kStream: how far ahead the kernel of scores brings K. Lines farther ahead would be evicted from L1, or wait with too
// many others.
inline constexpr int64_t kKeyBytesAhead = 8 << 10;
// How far beyond that a page is touched for the first time, so that its address is translated once its lines are
// wanted: a prefetch that must wait for the page's translation holds up the others.
inline constexpr int64_t kPageBytesAhead = 16 << 10;
// The kernel of weights takes V in blocks of about that many bytes: a block stays in L1 until every strip has been
// weighted. At least kLeastBlockCells cells of keys, since sums come and go with every block.
inline constexpr int64_t kValueBlockBytes = 4 << 10;
inline constexpr int64_t kLeastBlockCells = 4;
// How many blocks ahead V is brought.
inline constexpr int64_t kValueBlocksAhead = 2;

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
