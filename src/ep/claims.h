// What of a model this provider takes, and what it makes of it. Knows src/graph only, not ONNX Runtime.
#pragma once

#include <string>
#include <vector>

#include "ep/plan.h"
#include "graph/graph.h"

namespace kvshare::ep {

// How is_causal of an Attention without a past is read where S differs from T.
enum class Alignment {
  kAuto,        // kLowerRight for a layer that borrows another layer's present, kSpec elsewhere
  kSpec,        // query s sees the first s + 1 keys, as ONNX says
  kLowerRight,  // the last query sees all keys
};

struct Claims {
  Plans plans;
  // Layers that kAuto reads otherwise than ONNX says, as messages open.
  std::vector<std::string> repaired;
  // One line each: which node misses what, and why.
  std::vector<std::string> reasons;
};

// `graph` is a main graph; its bodies are looked through.
Claims FindClaims(const graph::Graph& graph, Alignment alignment);

}  // namespace kvshare::ep
