#include "graph/schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

namespace kvshare::graph {
namespace {

using Names = std::vector<std::string_view>;

const Names& KnownAttributes(const Node& node) {
  static const Names gqa = {
      "causal",       "do_rotary",         "num_heads",         "kv_num_heads",         "scale",
      "softcap",      "smooth_softmax",    "local_window_size", "sliding_window_cache", "rotary_interleaved",
      "qk_output",    "qk_norm_epsilon",   "q_norm_epsilon",    "k_norm_epsilon",       "k_quant_type",
      "v_quant_type", "kv_cache_bit_width"};
  static const Names attention = {
      "is_causal", "kv_num_heads",      "q_num_heads",      "qk_matmul_output_mode", "scale",
      "softcap",   "softmax_precision", "left_window_size", "right_window_size"};
  static const Names kvshare_attention = {"is_causal", "kv_num_heads", "q_num_heads",       "qk_matmul_output_mode",
                                          "scale",     "softcap",      "softmax_precision", "local_window_size"};
  if (node.op_type() == "GroupQueryAttention") return gqa;
  return DomainOf(node).empty() ? attention : kvshare_attention;
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

std::vector<UnknownAttribute> UnknownAttributes(const Node& node) {
  const Names& known = KnownAttributes(node);
  std::vector<UnknownAttribute> unknown;
  for (const auto& attribute : node.attribute()) {
    if (std::find(known.begin(), known.end(), attribute.name()) != known.end()) continue;
    UnknownAttribute found{attribute.name(), ""};
    size_t best = 3;
    for (const auto name : known)
      if (const size_t distance = EditDistance(name, attribute.name()); distance < best) {
        best = distance;
        found.nearest = name;
      }
    unknown.push_back(std::move(found));
  }
  return unknown;
}

std::string UnknownAttributeText(const Node& node) {
  const auto unknown = UnknownAttributes(node);
  if (unknown.empty()) return "";
  const auto& first = unknown.front();
  return fmt::format("has attribute '{}', which {} does not know{}", first.name, node.op_type(),
                     first.nearest.empty() ? "" : fmt::format(" ({}?)", first.nearest));
}

}  // namespace kvshare::graph
