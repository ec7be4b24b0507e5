// Are two extents the same? Extents are compared as sums of named ones: "past + seq" is "seq + past".
//
// Names are those that the model gives to extents of its values (dim_param), which mean one number wherever they stand,
// or else the value and the axis. What an excess is depends on such names: "Max(0, past - 4)".
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "graph/graph.h"

namespace kvshare::graph {

struct Sum {
  int64_t number = 0;
  std::map<std::string, int64_t> terms = {};  // by name: how often; never 0

  friend bool operator==(const Sum&, const Sum&) = default;
  bool Is(int64_t fixed) const { return terms.empty() && number == fixed; }
};

// Is it 0 or more, whatever the extents and excesses are that it is made of? They are not negative.
bool IsNeverNegative(const Sum& sum);
// Is it made of excesses alone, each added?
bool IsExcess(const Sum& sum);

Sum Add(Sum left, const Sum& right);
Sum Subtract(Sum left, const Sum& right);

// "past + seq - 4".
std::string TextOf(const Sum& sum);

// The extent of `value` along `axis`, which counts from the front.
Sum SumOfExtent(const Graph& graph, const std::string& value, int64_t axis);

// The only element of an integer value that is made of constants, extents, sums, differences and excesses; else
// nothing.
std::optional<Sum> SumOf(const Graph& graph, const std::string& value);

// Each element of a shape, joined of such.
std::optional<std::vector<Sum>> SumsOf(const Graph& graph, const std::string& value);

}  // namespace kvshare::graph
