// Operations of whole warps, and asynchronous copies.
#include <algorithm>
#include <cstring>
#include <vector>

#include "core/half.h"
#include "cuda/emulation/machine.h"
#include "cuda/emulation/race.h"

namespace gpu::emulation {
namespace {

// Each of the 65536 f16 numbers, as f32.
const float* Halves() {
  static const std::vector<float> table = [] {
    std::vector<float> all(1 << 16);
    for (uint32_t bits = 0; bits < all.size(); ++bits) all[bits] = kvshare::F32FromF16(static_cast<uint16_t>(bits));
    return all;
  }();
  return table.data();
}

// The lane's fragments of the PTX manual: lane = 4 * g + t.
void ExecuteMma(CudaThread* lanes, bool bf16) {
  const float* const halves = Halves();
  const auto unpack = [&](uint32_t two, float& low, float& high) {
    low = bf16 ? kvshare::F32FromBF16(static_cast<uint16_t>(two)) : halves[two & 0xFFFF];
    high = bf16 ? kvshare::F32FromBF16(static_cast<uint16_t>(two >> 16)) : halves[two >> 16];
  };
  float a[16][16], b[16][8], c[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const uint32_t* in = lanes[lane].slot.in;
    for (int i = 0; i < 4; ++i) {
      const int row = g + i % 2 * 8, column = 2 * t + i / 2 * 8;
      unpack(in[i], a[row][column], a[row][column + 1]);
    }
    for (int i = 0; i < 2; ++i) unpack(in[4 + i], b[2 * t + 8 * i][g], b[2 * t + 8 * i + 1][g]);
    std::memcpy(&c[g][2 * t], in + 6, 8);
    std::memcpy(&c[g + 8][2 * t], in + 8, 8);
  }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    std::memcpy(lanes[lane].slot.out, &c[g][2 * t], 8);
    std::memcpy(lanes[lane].slot.out + 2, &c[g + 8][2 * t], 8);
  }
}

// Counts bank conflicts of eight lanes that read 16 bytes each. Lanes of one address read together.
void CountConflicts(const CudaThread* lanes) {
  int turns[8] = {};  // of each group of four banks
  for (int lane = 0; lane < 8; ++lane) {
    const void* const address = lanes[lane].slot.address;
    const auto same = [&](const CudaThread& other) { return other.slot.address == address; };
    if (std::none_of(lanes, lanes + lane, same)) ++turns[reinterpret_cast<uintptr_t>(address) / 16 % 8];
  }
  Count().bank_conflicts += *std::max_element(turns, turns + 8) - 1;
}

void ExecuteLdMatrix(CudaThread* lanes, bool trans) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    const CudaThread* const rows = lanes + 8 * matrix;
    CountConflicts(rows);
    for (int lane = 0; lane < 32; ++lane) {
      uint16_t two[2];
      for (int j = 0; j < 2; ++j) {
        const int row = trans ? lane % 4 * 2 + j : lane / 4;
        const int column = trans ? lane / 4 : lane % 4 * 2 + j;
        std::memcpy(&two[j], rows[row].slot.row + 2 * column, 2);
      }
      lanes[lane].slot.out[matrix] = two[0] | static_cast<uint32_t>(two[1]) << 16;
    }
  }
}

void ExecuteMovMatrix(CudaThread* lanes) {
  const auto at = [&](int row, int column) {
    return lanes[row * 4 + column / 2].slot.in[0] >> (column % 2 * 16) & 0xFFFF;
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    lanes[lane].slot.out[0] = at(2 * t, g) | at(2 * t + 1, g) << 16;
  }
}

void ExecuteBallot(CudaThread* lanes) {
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= lanes[lane].slot.in[0] << lane;
  for (int lane = 0; lane < 32; ++lane) lanes[lane].slot.out[0] = bits;
}

bool InShared(const void* p, size_t bytes) {
  const Machine& m = TheMachine();
  const auto* const at = static_cast<const char*>(p);
  return at >= m.shared && at + bytes <= m.shared + m.shared_bytes;
}

bool Aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

void Deliver(const Copy& copy) {
  uint8_t bytes[16] = {};
  std::memcpy(bytes, copy.from, copy.bytes);
  race::Access(copy.to, 16, true, __builtin_return_address(0));
  std::memcpy(copy.to, bytes, 16);
}

}  // namespace

void Execute(WarpOp op, CudaThread* lanes) {
  switch (op) {
    case WarpOp::kSync: break;
    case WarpOp::kShuffle:
      for (int lane = 0; lane < 32; ++lane) lanes[lane].slot.out[0] = lanes[lanes[lane].slot.lane & 31].slot.in[0];
      break;
    case WarpOp::kBallot: ExecuteBallot(lanes); break;
    case WarpOp::kMmaHalf:
    case WarpOp::kMmaBF16:
      ++Count().mma;
      ExecuteMma(lanes, op == WarpOp::kMmaBF16);
      break;
    case WarpOp::kLoadShared:
      for (int lane = 0; lane < 32; lane += 8) CountConflicts(lanes + lane);
      break;
    case WarpOp::kLdMatrix:
    case WarpOp::kLdMatrixTrans:
      ++Count().ldmatrix;
      ExecuteLdMatrix(lanes, op == WarpOp::kLdMatrixTrans);
      break;
    case WarpOp::kMovMatrix: ExecuteMovMatrix(lanes); break;
  }
}

void SyncWarp(Where where) { Meet(WarpOp::kSync, where); }

float Shuffle(float v, int lane, Where where) {
  Slot& slot = Self().slot;
  std::memcpy(slot.in, &v, 4);
  slot.lane = lane;
  Meet(WarpOp::kShuffle, where);
  std::memcpy(&v, slot.out, 4);
  return v;
}

uint32_t Ballot(bool yes, Where where) {
  Slot& slot = Self().slot;
  slot.in[0] = yes ? 1 : 0;
  Meet(WarpOp::kBallot, where);
  return slot.out[0];
}

void LoadShared(float (&r)[4], const float* from, Where where) {
  if (!Aligned(from)) Fail("LoadShared of what is not 16-byte aligned", where);
  if (!InShared(from, 16)) Fail("LoadShared from outside shared memory", where);
  Self().slot.address = from;
  race::Access(from, 16, false, __builtin_return_address(0));
  std::memcpy(r, from, 16);
  Meet(WarpOp::kLoadShared, where);
}

void LdMatrix(uint32_t (&r)[4], const void* row, bool trans, Where where) {
  if (!Aligned(row)) Fail("LdMatrix of a row that is not 16-byte aligned", where);
  if (!InShared(row, 16)) Fail("LdMatrix of a row outside shared memory", where);
  Slot& slot = Self().slot;
  slot.address = row;
  race::Access(row, 16, false, __builtin_return_address(0));
  std::memcpy(slot.row, row, 16);
  Meet(trans ? WarpOp::kLdMatrixTrans : WarpOp::kLdMatrix, where);
  std::memcpy(r, slot.out, 16);
}

uint32_t MovMatrixTrans(uint32_t v, Where where) {
  Slot& slot = Self().slot;
  slot.in[0] = v;
  Meet(WarpOp::kMovMatrix, where);
  return slot.out[0];
}

void Mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool bf16, Where where) {
  Slot& slot = Self().slot;
  std::memcpy(slot.in, a, 16);
  std::memcpy(slot.in + 4, b, 8);
  std::memcpy(slot.in + 6, c, 16);
  Meet(bf16 ? WarpOp::kMmaBF16 : WarpOp::kMmaHalf, where);
  std::memcpy(c, slot.out, 16);
}

// Between issue and wait nobody knows what lies there: NaN.
void CopyAsync(void* shared, const void* global, int bytes, Where where) {
  if (!Aligned(shared) || !Aligned(global)) Fail("CopyAsync of what is not 16-byte aligned", where);
  if (!InShared(shared, 16)) Fail("CopyAsync to outside shared memory", where);
  if (bytes < 0 || bytes > 16) Fail("CopyAsync of a number of bytes outside 0 to 16", where);
  race::Access(shared, 16, true, __builtin_return_address(0));
  std::memset(shared, 0xFF, 16);
  CudaThread& self = Self();
  self.where = where;
  self.copies.push_back({shared, global, bytes, self.group});
  Count().copied_bytes += bytes;
}

void CopyCommit() { ++Self().group; }

void CopyWait(int newest) {
  CudaThread& self = Self();
  const auto under_way = [&](const Copy& copy) { return copy.group >= self.group - newest; };
  const auto end = std::find_if(self.copies.begin(), self.copies.end(), under_way);
  std::for_each(self.copies.begin(), end, Deliver);
  self.copies.erase(self.copies.begin(), end);
}

}  // namespace gpu::emulation
