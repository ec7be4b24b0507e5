// The rows of attention_kernels.inc as data.
#pragma once

#include <span>
#include <string_view>

#include "kvshare/shapes.h"
#include "kvshare/status.h"

namespace kvshare {

// How a row multiplies: by f32 FMA, by dot products of pairs of bf16 (products-inl.h), or by dot products of bytes,
// codes and digits (digits-inl.h).
enum class Products { kFma, kDots, kDigits };

struct TileKernelRow {
  const char* name;
  DType type;  // of K and V
  int rows;    // R
  Products products;
};

// Rows of the table with more query rows than this are wide: their units pack tiles of K and V (wide-inl.h).
inline constexpr int kNarrowRows = 8;
// From here on packing pays, measured at D 256 and 512: 48 rows are about even, 96 are a fifth faster.
inline constexpr int64_t kWideFrom = 80;

// All rows, in the table's order.
std::span<const TileKernelRow> TileKernels();

// The row for K/V of `type` where one unit of work has `rows` query rows; with `dots`, one of dot products, of bf16 or
// of bytes, if there is one. KVSHARE_FORCE_KERNEL=<name>, read once, takes that row instead, and fails (kRefused) where
// it does not exist or its type is another.
Result<const TileKernelRow*> ChooseTileKernel(DType type, int64_t rows, bool dots);
// Takes the place of KVSHARE_FORCE_KERNEL from now on; no name forces nothing. Not while kernels run.
void ForceTileKernelForTest(std::string_view name);

}  // namespace kvshare
