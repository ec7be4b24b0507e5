// Tuning at run time: the numbers of the plan, and the preferences of a CPU where CPUs of one SIMD target disagree.
// tuning-inl.h has what differs by SIMD target. No other file decides by target, by CPU or by the number of lanes what
// is faster.
#pragma once

#include <cstdint>

namespace kvshare {

// How a narrow kernel reads the rows of K or of V. docs/decisions/0015 says why there are three.
enum class Reading {
  kTileAhead,  // in order; brings a tile ahead into L2: the score kernel rows of V, the weight kernel the next rows of
               // K
  kSpread,     // keys from several places of the tile at once, for the hardware prefetcher; brings nothing itself
  kStream,     // in order; each kernel brings its own rows into L1, a few KB ahead
};

inline constexpr int kReadings = 3;

// CPUs that prefer another reading than others of the same SIMD target.
enum class Cpu {
  kCommon,
  kZen4,  // AMD's family 0x19
  kZen5,  // AMD's family 0x1A
};
Cpu ThisCpu();
// Makes ThisCpu() answer `cpu` from now on. The CPU decides what is fast, not what is right.
void SetCpuForTest(Cpu cpu);

// Whether dot products of bf16, where the target has them, are faster than f32 FMA. On Sapphire Rapids one takes as
// long as four FMA.
bool HasFastBF16Dots();
// Whether this CPU has Arm's dot products of bytes (sdot), which no SIMD target of Highway's but NEON_BF16 stands for.
bool HasByteDots();
// Whether this CPU multiplies matrices of bytes (Intel's AMX) and the system lets this process do so: asked once.
bool HasMatrixProducts();
// Makes HasMatrixProducts() answer `use` from now on, where the CPU has them. Results are the same to the bit.
void UseMatrixProductsForTest(bool use);

// The most channels that kernels of digits serve: their packed keys and sums stay in L1.
inline constexpr int64_t kMostDigitChannels = 1024;

// Units of work. There are no more splits once kEnoughUnits units are there to share out.
inline constexpr int64_t kEnoughUnits = 32;
// A unit of narrow rows: sums of at most 256 of them. A split pays for its merge from 256 keys and 64 KB on.
inline constexpr int64_t kRowsPerUnit = 256;
inline constexpr int64_t kKeysPerSplit = 256;
inline constexpr int64_t kBytesPerSplit = 64 << 10;
// So few keys are not worth packing queries, K and V for wide blocks. A unit of them has few rows: it
// loads queries and stores sums for the most part, which then stay in L1.
inline constexpr int64_t kFewKeys = 16;
inline constexpr int64_t kFewKeysUnitBytes = 24 << 10;

// A unit of wide blocks keeps its queries and sums in L2 beside a packed tile: the more blocks, the less packing. But
// there shall be kWideUnits units, if that leaves kWideBlocks blocks to each.
inline constexpr int64_t kWideUnitBytes = 640 << 10;
inline constexpr int64_t kWideUnits = 8;
inline constexpr int64_t kWideBlocks = 3;
inline constexpr int64_t kWideKeysPerSplit = 1024;
// Whole steps of both wide kernels on every target; a strip of V stays in L1 for all rows of a block.
inline constexpr int64_t kWideKeyTile = 96;

// Keys a tile where narrow kernels serve several blocks of rows.
inline constexpr int64_t kChunkKeyTile = 64;

// Keys a tile of kTileAhead in decode: 8 KB of K at D <= kShortHead, 32 to 64 KB above, so that the next tile arrives
// while this one is used. Of codes kCodeKeys times as many: they take longer a byte, and their tiles longer to begin
// and to end.
inline constexpr int64_t kShortHead = 128;
inline constexpr int64_t kShortHeadKeyTile = 16;
inline constexpr int64_t kLongHeadKeyTile = 32;
inline constexpr int64_t kCodeKeys = 8;

// Keys a tile of kSpread: the shorter a row, the more keys a stream needs.
inline constexpr int64_t kSpreadKeyTile = 128;
inline constexpr int64_t kSpreadShortRow = 512;  // bytes; twice the keys up to here
// On CPUs that prefer kSpread only where K and V come from memory: up to kKeptBytes of them may still lie in L2, since
// an earlier layer read them. With up to kSpreadFewRows rows kSpread is faster from L2, too.
inline constexpr int64_t kKeptBytes = 2 << 20;
inline constexpr int kSpreadFewRows = 2;

// Keys a tile of kStream: K and V take turns seldom. Whole steps of every kernel.
inline constexpr int64_t kStreamKeyTile = 512;
inline constexpr int64_t kStreamKeyStep = 32;
// Bytes of a row from which on streams pay, on CPUs that do not always prefer them.
inline constexpr int64_t kStreamLeastRow = 256;

}  // namespace kvshare
