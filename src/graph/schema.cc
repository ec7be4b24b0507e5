#include "graph/schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "core/ops.h"

namespace kvshare::graph {
namespace {

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
  const Operator* op = FindOperator(DomainOf(node), node.op_type());
  std::vector<UnknownAttribute> unknown;
  if (op == nullptr) return unknown;
  for (const auto& attribute : node.attribute()) {
    if (op->Has(attribute.name())) continue;
    UnknownAttribute found{attribute.name(), ""};
    size_t best = 3;
    for (const Attribute& known : op->attributes)
      if (const size_t distance = EditDistance(known.name, attribute.name()); distance < best) {
        best = distance;
        found.nearest = known.name;
      }
    unknown.push_back(std::move(found));
  }
  return unknown;
}

std::vector<std::string> DropInAttributes(const Node& node) {
  const Operator* op = FindOperator(DomainOf(node), node.op_type());
  std::vector<std::string> names;
  if (op == nullptr) return names;
  for (const Attribute& known : op->attributes)
    if (known.drop_in_only && FindAttribute(node, known.name) != nullptr) names.emplace_back(known.name);
  return names;
}

std::string UnknownAttributeText(const Node& node) {
  if (const auto unknown = UnknownAttributes(node); !unknown.empty()) {
    const auto& first = unknown.front();
    return fmt::format("has attribute '{}', which {} does not know{}", first.name, node.op_type(),
                       first.nearest.empty() ? "" : fmt::format(" ({}?)", first.nearest));
  }
  if (const auto names = DropInAttributes(node); !names.empty())
    return fmt::format("has attribute '{}', which {} knows only where kvshare's drop-in replaces it", names.front(),
                       node.op_type());
  return "";
}

}  // namespace kvshare::graph
