// Nodes that compute each token on its own: along which axis of an input lie the tokens of an output?
#pragma once

#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "graph/graph.h"
#include "graph/match/decline.h"

namespace kvshare::graph {

// Values of the main graph that no graph input has a part in: weights, and what nodes make of them.
class FixedValues {
 public:
  explicit FixedValues(const Graph& graph);
  bool Has(const std::string& value) const { return !open_.contains(value); }

 private:
  std::unordered_set<std::string> open_;
};

// Ranks of the main graph's values as it was when this was made: declared, or told by the nodes that make them.
class Ranks {
 public:
  explicit Ranks(const Graph& graph);
  int64_t Of(const std::string& value) const;  // -1: not known

 private:
  int64_t OfOutput(const Node& node, int output) const;
  int64_t LargestInput(const Node& node) const;

  const Graph& graph_;
  std::unordered_map<std::string, int64_t> made_;  // by nodes
};

// kShapeUnknown: `node` and what it reads.
Decline UnknownShape(const Node& node, const std::string& value);

struct TokenRead {
  int input = 0;
  int64_t axis = 0;  // counted from the end, as broadcasting does: -2 of [B, S, D]
};

struct TokenReads {
  std::vector<TokenRead> inputs;  // the others hold no tokens
  // For a Reshape whose shape names the number of tokens: a shape that takes any number of them.
  std::optional<std::vector<int64_t>> shape = std::nullopt;
};

// The inputs that `node`, which is no attention, reads token by token: its outputs hold tokens along `axis` (from the
// end). `logits` is the graph's output [B, S, V], whose symbols tell an extent of the batch or the tokens.
// kTokensMixed: a node that is not known to compute each token on its own. kShapeUnknown: a shape that would tell is
// not known.
Matched<TokenReads> ReadTokens(const Graph& graph, const FixedValues& fixed, const Ranks& ranks,
                               const std::string& logits, const Node& node, int64_t axis);

}  // namespace kvshare::graph
