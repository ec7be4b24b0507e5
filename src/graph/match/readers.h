// Finds readers of a value besides the nodes that are taken over. A value may change or go only if there are none.
#pragma once

#include <functional>
#include <string>
#include <unordered_set>
#include <vector>

#include "graph/graph.h"
#include "graph/match/decline.h"

namespace kvshare::graph {

// Does `node` read the value only as one of those that are taken over?
using IsTaken = std::function<bool(const Node& node)>;

// kValueIsOutput: a graph output. kValueIsCaptured: the body of a node reads it. kValueIsRead: a node that is not taken
// reads it. The message names the reader.
Decline CheckReaders(const Graph& graph, const std::string& value, const IsTaken& taken);
// The same for all outputs of `node`.
Decline CheckReadersOf(const Graph& graph, const Node& node, const IsTaken& taken);

// `values`, and all that nodes of the graph make with any of them. A node reads what its bodies read. Nothing is made
// with them by nodes that `ends` says.
std::unordered_set<std::string> MadeWith(const Graph& graph, std::unordered_set<std::string> values,
                                         const IsTaken& ends = nullptr);

// The nodes that the outputs of the graph need: all outputs, or all but one.
std::unordered_set<const Node*> NeededNodes(const Graph& graph, const std::string& but = "");

// The nodes, in the graph's order, that exist only to make `values`: nodes that are taken read those, and no other of
// their outputs; all of them are read by each other. Nodes that hold bodies are not among them.
std::vector<const Node*> NodesOnlyFor(const Graph& graph, const std::vector<std::string>& values, const IsTaken& taken);

}  // namespace kvshare::graph
