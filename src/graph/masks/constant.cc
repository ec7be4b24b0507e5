#include "graph/masks/constant.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "graph/constants.h"

namespace kvshare::graph {
namespace {

using Flags = std::vector<uint8_t>;  // 1: the key is kept

Decline Odd(const std::string& value, const std::string& fact) {
  return Because(DeclineCode::kMaskUnknown, "mask: constant '{}' {}", value, fact);
}

Matched<Flags> FlagsOf(const Graph& graph, const std::string& value) {
  Flags flags;
  if (graph.ElementType(value) == onnx::TensorProto::BOOL) {
    if (const auto kept = graph.Ints(value)) {
      flags.resize(kept->size());
      std::ranges::transform(*kept, flags.begin(), [](int64_t each) { return each != 0 ? 1 : 0; });
      return flags;
    }
  } else if (const auto added = graph.Floats(value)) {
    const auto odd = std::ranges::find_if(*added, [](double each) { return each != 0.0 && !(each <= kHides); });
    if (odd != added->end()) return Odd(value, fmt::format("adds {} to a score; needs 0 or at most {}", *odd, kHides));
    flags.resize(added->size());
    std::ranges::transform(*added, flags.begin(), [](double each) { return each == 0.0 ? 1 : 0; });
    return flags;
  }
  return Odd(value,
             fmt::format("is not read: it has more than {} elements, or another type than bool and floating point",
                         kMostElements));
}

// The keys [begin, end) that a query sees.
struct Seen {
  int64_t begin = 0;
  int64_t end = 0;

  friend bool operator==(const Seen&, const Seen&) = default;
};

Matched<std::vector<Seen>> SeenOf(const std::string& value, const Flags& flags, int64_t queries, int64_t keys) {
  std::vector<Seen> rows;
  for (int64_t s = 0; s < queries; ++s) {
    const auto row = flags.begin() + s * keys;
    const auto first = std::find(row, row + keys, 1);
    const auto last = std::find(first, row + keys, 0);
    if (first == row + keys) return Odd(value, fmt::format("hides all keys from query {}", s));
    if (std::find(last, row + keys, 1) != row + keys)
      return Odd(value, fmt::format("hides key {} from query {}, which sees keys on both sides of it", last - row, s));
    rows.push_back({first - row, last - row});
  }
  return rows;
}

}  // namespace

bool IsConstantMask(const Graph& graph, const std::string& value) {
  const auto* tensor = graph.ConstantTensor(graph.Origin(value));
  return tensor != nullptr && tensor->dims_size() >= 2;
}

Matched<ConstantMask> ReadConstantMask(const Graph& graph, const std::string& value) {
  const std::string& name = graph.Origin(value);
  const auto shape = graph.Shape(name);
  KVSHARE_ASSIGN_OR_RETURN(const Flags flags, FlagsOf(graph, name));
  ConstantMask mask{(*shape)[shape->size() - 2], shape->back()};
  const int64_t plane = mask.queries * mask.keys;
  if (plane == 0 || mask.queries > mask.keys)
    return Odd(name, fmt::format("has shape [{}]; needs a row a query and a column a key", fmt::join(*shape, ",")));
  for (auto each = flags.begin(); each != flags.end(); each += plane)
    if (!std::equal(each, each + plane, flags.begin()))
      return Odd(name, "differs along an axis before its last two; needs one mask for all heads and sequences");
  KVSHARE_ASSIGN_OR_RETURN(const std::vector<Seen> rows, SeenOf(name, flags, mask.queries, mask.keys));
  const Seen all{0, mask.keys};
  mask.causal = mask.queries == 1 || rows.front() != all;
  if (const Seen last = rows.back(); last.begin > 0) mask.window = last.end - last.begin;
  for (int64_t s = 0; s < mask.queries; ++s) {
    const int64_t end = mask.causal ? mask.keys - mask.queries + s + 1 : mask.keys;
    const int64_t begin = mask.window < 0 ? 0 : std::max<int64_t>(0, end - mask.window);
    if (const Seen is = rows[static_cast<size_t>(s)]; is != Seen{begin, end})
      return Odd(name, fmt::format("lets query {} see keys {} to {}; by its other queries it needs {} to {}", s,
                                   is.begin, is.end - 1, begin, end - 1));
  }
  return mask;
}

}  // namespace kvshare::graph
