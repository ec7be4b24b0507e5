#include "attention/kernel_table.h"

#include <fmt/format.h>

#include <array>
#include <cstdlib>
#include <string>
#include <string_view>

namespace kvshare {
namespace {

constexpr auto kRows = std::to_array<TileKernelRow>({
#define KVSHARE_TILE_KERNEL(name, type, rows, products) {#name, DType::type, rows, Products::products},
#include "attention/attention_kernels.inc"
#undef KVSHARE_TILE_KERNEL
});

// KVSHARE_FORCE_KERNEL, read once: a host may change its environment while kernels run.
std::string& Forced() {
  static std::string forced = [] {
    const char* const name = std::getenv("KVSHARE_FORCE_KERNEL");
    return std::string(name != nullptr ? name : "");
  }();
  return forced;
}

std::string NamesFor(DType type) {
  std::string names;
  for (const TileKernelRow& row : kRows)
    if (row.type == type) names += (names.empty() ? "" : ", ") + std::string(row.name);
  return names;
}

}  // namespace

void ForceTileKernelForTest(std::string_view name) { Forced() = name; }

std::span<const TileKernelRow> TileKernels() { return kRows; }

Result<const TileKernelRow*> ChooseTileKernel(DType type, int64_t rows, bool dots) {
  const std::string& forced = Forced();
  const TileKernelRow* chosen = nullptr;
  for (const TileKernelRow& row : kRows) {
    if (row.type != type) continue;
    if (!forced.empty()) {
      if (forced == row.name) return &row;
      continue;
    }
    if (row.products != Products::kFma && !dots) continue;
    if (row.rows > kNarrowRows && rows < kWideFrom) continue;
    if (chosen == nullptr || (chosen->rows < rows && row.rows > chosen->rows)) chosen = &row;
  }
  if (chosen != nullptr) return chosen;
  return Status::Refused(fmt::format("KVSHARE_FORCE_KERNEL is '{}', which does not serve {} K/V; have {}", forced,
                                     NameOf(type), NamesFor(type)));
}

}  // namespace kvshare
