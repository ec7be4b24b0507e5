// Facts of a layer that several forms read.
#pragma once

#include <string>
#include <vector>

#include "graph/forms/form.h"

namespace kvshare::graph {

// A number of heads or channels; 0, not known, for what no tensor can have, so that products of two stay in range.
int64_t ExtentOrZero(int64_t value);

// The head size of a BNSH value; 0: not known.
int64_t HeadSizeFrom(const Graph& graph, const std::string& bnsh);
// The head size of a 3-D value that holds `heads` heads side by side; 0: not known.
int64_t HeadSizeIn(const Graph& graph, const std::string& folded, int64_t heads);

// Heads and window of GroupQueryAttention.
void ReadGqaFacts(Layer& layer);
// Heads, window and mask of Attention.
void ReadAttentionFacts(Layer& layer);

// A value followed up to where it was BNSH, as one layer's present is.
struct Trace {
  std::string value;
  std::vector<const Node*> steps = {};  // from the attention's side
  int64_t expansion = 1;                // how often steps repeat each head
  int64_t heads = 0;                    // before that; 0: not known
};

// Where `bnsh` is past and new keys joined outside of attention, as PyTorch's exporter writes caches.
Join JoinOf(const Graph& graph, const std::string& bnsh);

// Where `value` is a graph input into which new keys are written: TensorScatter's or ScatterND's output, perhaps
// turned.
StaticCache StaticCacheOf(const Graph& graph, const std::string& value);

// Through the Unsqueeze, Expand and Reshape of repeat_kv, where `value` ends such; else `value` itself.
Trace BeforeExpansion(const Graph& graph, const std::string& value);
// The same, or through Transpose and Reshape.
Trace TraceUp(const Graph& graph, const std::string& value);

// The layer is shared: finds its source, and says in Layer::trouble what is odd about the way.
void Borrow(const LayersBefore& before, Layer& layer, const Trace& key, const Trace& value);

}  // namespace kvshare::graph
