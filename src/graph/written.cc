#include "graph/written.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>

namespace kvshare::graph {
namespace {

struct Producer {
  std::string_view name;  // ModelProto.producer_name
  std::string_view text;
};
constexpr std::array<Producer, 3> kProducers = {{{"mobius", "mobius"},
                                                 {"onnxruntime-genai", "onnxruntime-genai's model builder"},
                                                 {"onnxruntime.transformers", "onnxruntime.transformers' optimizer"}}};

// Both of PyTorch's exporters call themselves "pytorch"; the older one names nodes by their modules' paths.
std::string_view TorchText(const Graph& graph) {
  const auto& nodes = graph.proto().node();
  const bool has_paths = std::ranges::any_of(nodes, [](const Node& node) { return node.name().starts_with('/'); });
  return has_paths ? "torch.onnx.export (TorchScript), PyTorch" : "torch.onnx.export (dynamo), PyTorch";
}

// QEfficient hands what torch.onnx.export writes on through transforms of its own, and lists them.
bool IsOfQEfficient(const onnx::ModelProto& model) {
  return std::ranges::any_of(model.metadata_props(),
                             [](const auto& entry) { return entry.key() == "qeff_transforms"; });
}

std::string CacheText(const Layer& layer) {
  const Node& node = *layer.node;
  if (!Input(node, layer.IsGqa() ? 3 : 4).empty()) return ", past and present of its own";
  if (layer.key_join.last > 0)
    return fmt::format(", caches joined by Concat, of which {} rows are kept", layer.key_join.last);
  if (layer.key_join.node != nullptr) return ", caches joined by Concat";
  if (const auto& [writer, cache, rows, grows] = layer.static_key; writer != nullptr)
    return grows ? fmt::format(", cache that grows by Pad and {}", writer->op_type())
                 : fmt::format(", static cache of {} rows by {}", rows == 0 ? "?" : fmt::format("{}", rows),
                               writer->op_type());
  return ", no cache";
}

struct Words {
  std::string_view form;  // Form::name
  std::string_view text;
};
constexpr std::array<Words, 6> kWords = {
    {{"external-gqa", "GroupQueryAttention that borrows by external_key"},
     {"empty-key-gqa", "GroupQueryAttention that borrows by a key of length 0"},
     {"borrowing-attention", "Attention that borrows a cache"},
     {"equal-keys-attention", "Attention that takes another layer's key and value"},
     {"own-gqa", "own GroupQueryAttention"},
     {"own-attention", "own Attention"}}};

}  // namespace

std::string ProducerText(const Graph& graph) {
  const auto& model = graph.model();
  std::string_view text = model.producer_name();
  if (text == "pytorch") {
    text = TorchText(graph);
  } else if (const auto* known = std::ranges::find(kProducers, text, &Producer::name); known != kProducers.end()) {
    text = known->text;
  }
  return fmt::format("{}{}{}{}", IsOfQEfficient(model) ? "QEfficient, by " : "", text,
                     model.producer_version().empty() ? "" : " ", model.producer_version());
}

std::string FormText(const Layer& layer) {
  const auto* words = std::ranges::find(kWords, std::string_view(layer.written), &Words::form);
  return fmt::format("{}{}{}", words == kWords.end() ? layer.written : words->text,
                     layer.IsShared() ? "" : CacheText(layer),
                     layer.expansion > 1 ? ", heads repeated for their queries" : "");
}

}  // namespace kvshare::graph
