// A form: one way of writing an attention layer.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "graph/layers.h"

namespace kvshare::graph {

// The layers before the one that is read: each may be borrowed from.
class LayersBefore {
 public:
  // The layer whose present `value` is, as `graph` sees it; nothing if it is none's.
  std::optional<int> MakerOf(const Graph& graph, const std::string& value) const;
  // The first layer to take this key and value, made by no layer; nothing if there was none before.
  std::optional<int> TakerOf(const Graph& graph, const std::string& key, const std::string& value) const;
  const Layer& operator[](int index) const { return layers_[static_cast<size_t>(index)]; }

  int size() const { return static_cast<int>(layers_.size()); }
  void Add(Layer layer);
  std::vector<Layer> Take() { return std::move(layers_); }

 private:
  std::vector<Layer> layers_;
  std::map<std::tuple<const Graph*, std::string, std::string>, int> takers_;  // graph, key, value
  std::map<std::pair<const Graph*, std::string>, int> makers_;                // graph, present
};

// A way of writing a layer. `read` fills in the fields of this form: node, graph and index are there already.
// It returns false, and leaves the layer as it was, where the layer is not of this form.
struct Form {
  const char* name;
  bool (*read)(const LayersBefore& before, Layer& layer);
};

// In the order they are tried; the last two take whatever is left of their operators.
const std::vector<Form>& AllForms();

bool ReadExternalGqa(const LayersBefore& before, Layer& layer);
bool ReadEmptyKeyGqa(const LayersBefore& before, Layer& layer);
bool ReadBorrowingAttention(const LayersBefore& before, Layer& layer);
bool ReadEqualKeysAttention(const LayersBefore& before, Layer& layer);
bool ReadOwnGqa(const LayersBefore& before, Layer& layer);
bool ReadOwnAttention(const LayersBefore& before, Layer& layer);

}  // namespace kvshare::graph
