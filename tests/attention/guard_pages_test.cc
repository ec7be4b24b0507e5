// Nothing outside a tensor, and no page that only invisible rows lie on, is ever read: such pages are made
// inaccessible.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <span>

#include "attention/kernel_table.h"
#include "tests/support/every_target.h"
#include "tests/support/problem.h"

namespace kvshare {
namespace {

using testing::Array;
using testing::EveryTarget;
using testing::Problem;

// Bytes with an inaccessible page on either side; they end (or begin) right at one.
class Guarded {
 public:
  Guarded(std::span<const std::byte> bytes, bool at_end) {
    const size_t page = sysconf(_SC_PAGESIZE);
    const size_t inner = (bytes.size() + page - 1) / page * page;
    size_ = inner + 2 * page;
    base_ = static_cast<std::byte*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    data_ = base_ + page + (at_end ? inner - bytes.size() : 0);
    std::memcpy(data_, bytes.data(), bytes.size());
    mprotect(base_, page, PROT_NONE);
    mprotect(base_ + page + inner, page, PROT_NONE);
  }
  ~Guarded() { munmap(base_, size_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  std::byte* data() { return data_; }

  // Makes the whole pages inside bytes [begin, end) inaccessible.
  void Close(int64_t begin, int64_t end) {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t first = (reinterpret_cast<uintptr_t>(data_ + begin) + page - 1) / page * page;
    const uintptr_t last = reinterpret_cast<uintptr_t>(data_ + end) / page * page;
    if (first < last) mprotect(reinterpret_cast<void*>(first), last - first, PROT_NONE);
  }

 private:
  std::byte* base_;
  std::byte* data_;
  size_t size_;
};

KVSHARE_ON_EVERY_TARGET();

// Runs `p` with every tensor between closed pages, and those of K and V closed that hold only rows before `first` or
// from `length` on.
void RunGuarded(Problem& p, int64_t first, bool at_end) {
  Array out;
  AttentionCall call = p.Call(out);
  Guarded query(p.query.bytes, at_end), key(p.key.bytes, at_end), value(p.value.bytes, at_end), o(out.bytes, at_end);
  call.query.data = query.data();
  call.key.data = key.data();
  call.value.data = value.data();
  call.output.data = o.data();
  for (int64_t b = 0; b < p.B; ++b)
    for (int64_t h = 0; h < p.Hkv; ++h)
      for (auto [guarded, view] : {std::pair{&key, &call.key}, {&value, &call.value}}) {
        const auto row = [&, v = view](int64_t t) { return BytesOf(v->type, v->Offset(b, h, t)); };
        guarded->Close(row(0), row(first));
        guarded->Close(row(p.length[b]), row(p.T));
      }
  WorkspacePool pool;
  ASSERT_TRUE(CheckAttention(call, "test").ok());
  ASSERT_TRUE(Attend(call, ParallelFor::Serial(), pool).ok());  // dies of a read that it should not have made
  Array truth;
  AttentionCall want = p.Call(truth);
  AttendOracle(want);
  Array got = truth;
  std::memcpy(got.data(), o.data(), got.bytes.size());
  const double tolerance = p.type != DType::kF32 ? 2e-2 : testing::HoldsIntegers(p.kv_type) ? 1e-4 : 1e-5;
  testing::ExpectClose(truth, got, p.Dv, tolerance);
}

TEST_P(EveryTarget, DecodeReadsNoPageOfInvisibleRows) {
  for (const TileKernelRow& kernel : TileKernels())
    for (const int64_t D : {20, 64})
      for (const bool at_end : {false, true}) {
        Problem p;
        p.Hkv = 2;
        p.Hq = 2 * kernel.rows;
        p.T = 1500;
        p.D = D;
        p.window = 100;
        p.length = {1001};
        p.kv_type = kernel.type;
        p.type = IsQuantized(kernel.type) ? DType::kF32 : kernel.type;
        p.Fill();
        SCOPED_TRACE(::testing::Message() << kernel.name << " D " << D << " at end " << at_end);
        RunGuarded(p, 1001 - 100, at_end);
        if (HasFatalFailure()) return;
      }
}

TEST_P(EveryTarget, AChunkReadsNoPageOutsideItsWindowAndNothingPastItsTensors) {
  for (const DType type : {DType::kF32, DType::kF16, DType::kI8, DType::kI4, DType::kF8E4M3})
    for (const int64_t S : {3, 37})
      for (const bool at_end : {false, true}) {
        Problem p;
        p.Hq = 4;
        p.S = S;
        p.T = 2500;
        p.D = 36;
        p.window = 100;
        p.length = {2003};
        p.kv_type = type;
        p.type = type == DType::kF16 ? DType::kF16 : DType::kF32;
        p.Fill();
        SCOPED_TRACE(::testing::Message() << NameOf(type) << " S " << S << " at end " << at_end);
        RunGuarded(p, 2003 - S - 99, at_end);
        if (HasFatalFailure()) return;
      }
}

TEST(Append, ReadsNothingPastItsTensors) {
  for (const DType type : {DType::kF32, DType::kF16, DType::kI8, DType::kI4, DType::kF8E4M3})
    for (const int64_t D : {7, 20, 64})
      for (const bool at_end : {false, true}) {
        const int64_t B = 2, H = 3, S = 5, past_rows = 11, rows = RowElements(type, D);
        std::mt19937 random(3);
        Array past(type, B * H * past_rows * rows), fresh(DType::kF32, B * S * H * D), cos(DType::kF32, 16 * (D / 2));
        Array present(type, B * H * (past_rows + S) * rows);
        for (Array* a : {&past, &fresh, &cos}) a->Fill(random, 1);
        const std::vector<float> scales(H * D, 0.02F);
        Guarded p(past.bytes, at_end), f(fresh.bytes, at_end), c(cos.bytes, at_end), o(present.bytes, at_end);
        Guarded scale(std::as_bytes(std::span(scales)), at_end);
        const int64_t past_length[] = {past_rows, 2};
        AppendCall call;
        call.past = HeadsView::Bnsh(p.data(), type, B, H, past_rows, D);
        call.fresh = HeadsView::Bsnh(f.data(), DType::kF32, B, S, H, D);
        call.present = MutableHeadsView::Bnsh(o.data(), type, B, H, past_rows + S, D);
        if (IsQuantized(type))
          call.past.quant = call.present.quant = {reinterpret_cast<const float*>(scale.data()), true};
        call.past_length = past_length;
        call.rotary = {c.data(), c.data(), DType::kF32, 16, D / 2, false};
        ASSERT_TRUE(CheckAppend(call, "test").ok()) << CheckAppend(call, "test").message();
        WorkspacePool pool;
        ASSERT_TRUE(Append(call, ParallelFor::Serial(), pool).ok());
      }
}

}  // namespace
}  // namespace kvshare
