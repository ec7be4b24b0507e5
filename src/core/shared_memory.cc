#include "core/shared_memory.h"

#include <fmt/format.h>

#include <cstdint>

#include "core/half.h"

namespace kvshare {
namespace {

// Elements of B * heads * tokens rows that lie side by side; 0 where the view has gaps or int64 does not hold the
// number.
int64_t DenseElements(const HeadsView& v) {
  const int64_t row = RowElements(v.type, v.head_size);
  int64_t elements = row;
  for (const int64_t extent : {v.tokens, v.heads, v.batch})
    if (__builtin_mul_overflow(elements, extent, &elements)) return 0;
  const bool bnsh = v.token_stride == row && v.head_stride == v.tokens * row;
  const bool bsnh = v.head_stride == row && v.token_stride == v.heads * row;
  return (bnsh || bsnh) && v.batch_stride == v.heads * v.tokens * row ? elements : 0;
}

// Views with gaps may be interleaved: of them only the first element tells.
bool Overlap(const HeadsView& a, const HeadsView& b) {
  const auto empty = [](const HeadsView& v) {
    return v.data == nullptr || v.batch == 0 || v.heads == 0 || v.tokens == 0;
  };
  if (empty(a) || empty(b)) return false;
  if (a.data == b.data) return true;
  const int64_t a_elements = DenseElements(a);
  const int64_t b_elements = DenseElements(b);
  return a_elements > 0 && b_elements > 0 && a.data < At(b.data, b.type, b_elements) &&
         b.data < At(a.data, a.type, a_elements);
}

bool SameRows(const HeadsView& a, const HeadsView& b) {
  return a.data == b.data && (a.batch == 1 || a.batch_stride == b.batch_stride) &&
         (a.heads == 1 || a.head_stride == b.head_stride) && a.token_stride == b.token_stride;
}

Status Shares(std::string_view where, const char* kind, const std::string& a, const std::string& b) {
  return Status::InvalidInput(
      fmt::format("{}: {} '{}' shares memory with '{}'; needs memory of its own", where, kind, a, b));
}

}  // namespace

Status CheckOwnMemory(const AppendCall& call, const AppendNames& names, std::string_view where) {
  const HeadsView present = Const(call.present);
  if (Overlap(call.fresh, present)) return Shares(where, "input", names.fresh(), names.present());
  if (!Overlap(call.past, present) || SameRows(call.past, present)) return {};
  return Status::InvalidInput(
      fmt::format("{}: input '{}' shares memory with '{}' and has {} rows; needs its first element and its {} rows, or "
                  "memory of its own",
                  where, names.past(), names.present(), call.past.tokens, present.tokens));
}

Status CheckApart(const AppendCall& call, const AppendNames& names, const AppendCall& other,
                  const AppendNames& other_names, std::string_view where) {
  const HeadsView present = Const(call.present);
  const HeadsView other_present = Const(other.present);
  if (Overlap(present, other_present)) return Shares(where, "output", other_names.present(), names.present());
  if (Overlap(call.past, other_present)) return Shares(where, "input", names.past(), other_names.present());
  if (Overlap(call.fresh, other_present)) return Shares(where, "input", names.fresh(), other_names.present());
  if (Overlap(other.past, present)) return Shares(where, "input", other_names.past(), names.present());
  if (Overlap(other.fresh, present)) return Shares(where, "input", other_names.fresh(), names.present());
  return {};
}

}  // namespace kvshare
