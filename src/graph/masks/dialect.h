// A dialect: one exporter's way of writing masks.
#pragma once

#include <string>
#include <vector>

#include "graph/masks.h"

namespace kvshare::graph {

struct Dialect {
  const char* name;
  Matched<MaskMeaning> (*read)(const Graph& graph, const std::string& mask);
};

// In the order they are tried; where none reads a mask, the first one says why.
const std::vector<Dialect>& AllDialects();

Matched<MaskMeaning> ReadCumSumMask(const Graph& graph, const std::string& mask);

}  // namespace kvshare::graph
