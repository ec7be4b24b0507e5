// Which values of a graph are equal whatever it is given? Those that the same operators make of the same operands, all
// the way down. A call of one of the model's functions is what its nodes are. Each value has a number.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

#include "graph/graph.h"

namespace kvshare::graph {

class ValueNumbers {
 public:
  // Inputs that are taken for equal: by input, the one that stands for all of them.
  using Leaders = std::unordered_map<std::string, std::string>;

  // None: no value has a number.
  ValueNumbers() = default;
  // Numbers the main graph's values. Outputs of random nodes, of nodes with bodies or of unknown domains equal none.
  ValueNumbers(const Graph& graph, const Leaders& leaders);

  // Values of one number are equal; 0: `value` has none.
  int64_t Of(const std::string& value) const;

 private:
  std::unordered_map<std::string, int64_t> numbers_;
};

}  // namespace kvshare::graph
