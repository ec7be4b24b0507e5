// A dialect: one exporter's way of writing masks.
#pragma once

#include <string>
#include <vector>

#include "graph/masks.h"

namespace kvshare::graph {

struct Dialect {
  const char* name;
  // Has `mask` what this dialect's masks have, and other dialects' have not?
  bool (*is_like)(const Graph& graph, const std::string& mask);
  Matched<MaskMeaning> (*read)(const Graph& graph, const std::string& mask);
};

// In the order they are tried; where none reads a mask, the one that it is like says why, else the first.
const std::vector<Dialect>& AllDialects();

Matched<MaskMeaning> ReadColumnMask(const Graph& graph, const std::string& mask);
Matched<MaskMeaning> ReadCumSumMask(const Graph& graph, const std::string& mask);

}  // namespace kvshare::graph
