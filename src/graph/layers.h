// The attention layers of a graph: which own their K/V, which borrow, and from whom. Each way of writing a layer is a
// form: forms/form.h.
#pragma once

#include <string>
#include <vector>

#include "graph/graph.h"
#include "graph/match/decline.h"
#include "kvshare/rewrite.h"

namespace kvshare::graph {

inline constexpr int kExternalKey = 17;  // inputs of kvshare::GroupQueryAttention
inline constexpr int kExternalValue = 18;
inline constexpr int kKeyMask = 7;  // input of kvshare::Attention
inline constexpr int64_t kFullWindow = -1;
inline constexpr const char* kWindowCacheRows = "window_cache_rows";  // of kvshare::GroupQueryAttention

// A present that the graph itself makes, by putting new keys after past ones: Concat(past, added), BNSH.
struct Join {
  const Node* node = nullptr;  // null: there is none
  std::string past;
  std::string added;
  int64_t last = 0;  // only so many last rows of the past are joined; 0: all
};

// A cache of fixed size, a graph input into which the graph itself writes new keys.
struct StaticCache {
  const Node* writer = nullptr;  // TensorScatter or ScatterND; null: there is none
  std::string cache;
  int64_t rows = 0;    // 0: not fixed
  bool grows = false;  // it is padded to have a row for each token
};

struct Layer {
  int index = 0;
  const Node* node = nullptr;
  const Graph* graph = nullptr;  // the one that holds the node: the main graph, a body, or a function's copy
  LayerForm form = LayerForm::kGroupQueryAttention;
  const char* written = "";  // the name of its form
  LayerKind kind = LayerKind::kOwn;
  int source = -1;  // kShared: index of the layer it borrows from; -1: a graph input
  std::string key;  // kShared: the borrowed BNSH values
  std::string value;
  bool made_outside = false;  // kShared: they are no present of the source, which takes them as its key and value too
  Join key_join;              // of an own layer whose node has no past
  Join value_join;
  StaticCache static_key;  // of an own layer whose node has no past
  StaticCache static_value;
  std::vector<const Node*> copies;  // between its keys or values and the node: Transpose, Reshape, Unsqueeze, Expand
  int64_t expansion = 1;            // how often the graph repeats each key-value head before the node (repeat_kv)
  bool constant_empty = false;      // kShared GQA: its empty key is a constant, which fixes the batch
  int64_t window = kFullWindow;
  int64_t query_heads = 0;
  int64_t kv_heads = 0;   // before the expansion
  int64_t head_size = 0;  // 0: not known
  Decline trouble;        // why the borrowing is not exactly understood; ok(): it is
  Decline mask_trouble;   // why its mask is not exactly understood; ok(): it is, or there is none

  bool IsGqa() const { return form == LayerForm::kGroupQueryAttention; }
  bool IsShared() const { return kind == LayerKind::kShared; }
  bool IsKvshare() const { return node->domain() == kKvshare; }
};

// Has the Attention a past, or a part of one?
bool HasPast(const Node& attention);

// The mask or bias that the layer's node reads; "": none.
const std::string& MaskValueOf(const Layer& layer);

// The layers of the main graph and of its bodies in execution order, then those of functions. Layer::index is a layer's
// place in the vector. A layer in a body may borrow from a layer of a graph around it.
std::vector<Layer> FindLayers(const Graph& graph);

// "8" or "full".
std::string WindowText(int64_t window);

}  // namespace kvshare::graph
