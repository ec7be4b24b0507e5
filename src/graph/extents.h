// Reads the numbers that a shape computation gives: constants, extents of other values, arithmetic on fixed numbers.
// The answer is the same whether an optimizer folded the nodes or left them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "graph/graph.h"

namespace kvshare::graph {

// One element of an integer value.
struct Extent {
  std::string of;  // "": a plain number; else it is this value's extent `axis`
  int64_t axis = 0;
  std::optional<int64_t> number;  // nothing: not fixed

  bool IsKnown() const { return !of.empty() || number.has_value(); }
};

// Nothing where `value` is not made of constants, Shape, Gather, Concat, Squeeze, Unsqueeze, Reshape, casts, and
// arithmetic; a sum of extents is an element that is not known. Values are named as Graph::Origin names them; casts are
// looked through, as they keep extents.
std::optional<std::vector<Extent>> ExtentsOf(const Graph& graph, const std::string& value);

// The only element of `value`.
std::optional<Extent> ExtentOf(const Graph& graph, const std::string& value);

// Is `extent` that of `value` along `axis`: of that name, or the same fixed number?
bool IsExtent(const Graph& graph, const Extent& extent, const std::string& value, int64_t axis);

// Where all elements are fixed: those of Graph::Ints, and what nodes compute of such.
std::optional<std::vector<int64_t>> KnownInts(const Graph& graph, const std::string& value);

// A constant of one element of any numeric type, casts to floating point and changes of shape allowed.
std::optional<double> KnownScalar(const Graph& graph, const std::string& value);

// The last rows of a value, as Slice [-rows:] along one axis takes them: all, where there are no more.
struct LastRows {
  std::string value;
  int64_t axis = 0;  // counted from the front
  int64_t rows = 0;
};

// Nothing where `value` is made in another way.
std::optional<LastRows> LastRowsOf(const Graph& graph, const std::string& value);

// `value`, or what it was before Identity nodes and casts to int32 or int64.
const std::string& BeforeCast(const Graph& graph, const std::string& value);

}  // namespace kvshare::graph
