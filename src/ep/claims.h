// The nodes of a model that this provider claims, and a plan for each. Knows src/graph only, not ONNX Runtime.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "ep/plan.h"
#include "graph/graph.h"
#include "kvshare/provider.h"

namespace kvshare::ep {

// The key mask that a mask group writes in place of one mask.
struct MaskOutput {
  std::string source;  // the group's input [B, T] of int64, int32 or bool: not 0 keeps a key
  int rank = 4;        // of the mask: [B, S, T] or [B, 1, S, T]
  int64_t rows = 1;    // its extent S where the model fixes it, which ONNX Runtime then expects

  friend bool operator==(const MaskOutput&, const MaskOutput&) = default;
};

struct Claims {
  // Attention nodes that read a value otherwise than ONNX says, by their first output. The values may be made so only
  // if each of these nodes has a kernel here.
  std::set<std::string> Readers() const;
  // Adds the plans of `earlier` claims of the same model, in place of those for the same nodes.
  void TakeOver(Claims earlier);

  Plans plans;
  // Nodes that exist only for masks, in the graph's order, each by its first output: together one node.
  std::vector<std::string> group;
  std::map<std::string, MaskOutput> masks;  // the group's outputs
  // Transposes, Reshapes, Unsqueezes and Expands whose output is their input's memory, by their output.
  std::set<std::string> aliases;

  // Layers that kAuto reads otherwise than ONNX says, as messages open.
  std::vector<std::string> repaired;
  // One line each: which node misses what, and why.
  std::vector<std::string> reasons;
};

struct ClaimOptions {
  CausalAlignment alignment = CausalAlignment::kAuto;
  bool masks = true;    // may be taken for key masks
  bool aliases = true;  // of borrowed keys and values
  // Attention nodes by their first output, with the reason: nobody here reads a mask or a cache for them otherwise than
  // ONNX says.
  std::map<std::string, std::string> refused = {};
};

// `graph` is a main graph; its bodies are looked through. Masks and aliases are of the main graph's own layers.
Claims FindClaims(const graph::Graph& graph, const ClaimOptions& options);

}  // namespace kvshare::ep
