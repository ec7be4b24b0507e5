#include "graph/cuda_copies.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "graph/layers.h"

namespace kvshare::graph {
namespace {

using onnx::TensorProto;

struct NoKernel {
  std::string_view domain;
  std::string_view op;
  int type;  // of input 0; 0: any
};

constexpr std::array<NoKernel, 7> kNoCudaKernel = {{
    {"", "CumSum", TensorProto::INT64},
    {"", "Less", TensorProto::INT64},
    {"", "GreaterOrEqual", TensorProto::INT64},
    {"", "And", 0},
    {kMicrosoft, "GroupQueryAttention", TensorProto::FLOAT},
    {kKvshare, "GroupQueryAttention", 0},
    {kKvshare, "Attention", 0},
}};

// Inputs that a CUDA kernel takes from the CPU.
struct HostInput {
  std::string_view op;
  int input;
};
constexpr std::array<HostInput, 12> kHostInputs = {{{"Reshape", 1},
                                                    {"Expand", 1},
                                                    {"ConstantOfShape", 0},
                                                    {"Slice", 1},
                                                    {"Slice", 2},
                                                    {"Slice", 3},
                                                    {"Slice", 4},
                                                    {"Unsqueeze", 1},
                                                    {"Squeeze", 1},
                                                    {"CumSum", 1},
                                                    {"ReduceSum", 1},
                                                    {"GroupQueryAttention", 6}}};

bool TakesFromHost(const Node& node, int input) {
  return std::any_of(kHostInputs.begin(), kHostInputs.end(),
                     [&](const HostInput& host) { return host.op == node.op_type() && host.input == input; });
}

// Element types where the model leaves them out: the row's own. Then the prediction errs towards a copy.
bool LacksCudaKernel(const Graph& graph, const Node& node,
                     const std::unordered_map<const Node*, int>& attention_types) {
  int type = graph.ElementType(Input(node, 0));
  if (const auto it = attention_types.find(&node); type == 0 && it != attention_types.end()) type = it->second;
  return std::any_of(kNoCudaKernel.begin(), kNoCudaKernel.end(), [&](const NoKernel& row) {
    return row.op == node.op_type() && row.domain == DomainOf(node) && (row.type == 0 || type == 0 || row.type == type);
  });
}

}  // namespace

int64_t PredictedCudaCopies(const Graph& graph) {
  std::unordered_map<const Node*, int> attention_types;
  for (const Layer& layer : FindLayers(graph))
    attention_types[layer.node] = layer.graph->ElementType(layer.IsShared() ? layer.key : Input(*layer.node, 3));

  std::unordered_set<std::string> host_values;  // made on the CPU
  std::unordered_set<const Node*> host_nodes;
  for (const Node* node : graph.nodes()) {
    // Shape computations: all they read of other nodes is on the CPU already.
    bool shape = node->op_type() == "Shape" || node->op_type() == "Size";
    if (!shape && node->op_type() != "ConstantOfShape") {
      bool any = false;
      shape = true;
      for (const auto& input : node->input()) {
        if (input.empty() || graph.ConstantTensor(input) != nullptr || graph.Ints(input)) continue;
        any = true;
        shape = shape && host_values.contains(input);
      }
      shape = shape && any;
    }
    if (!shape && !LacksCudaKernel(graph, *node, attention_types)) continue;
    host_nodes.insert(node);
    host_values.insert(node->output().begin(), node->output().end());
  }

  int64_t copies = 0;
  std::unordered_map<std::string, std::pair<bool, bool>> read;  // value -> by CPU, by GPU
  for (const Node* node : graph.nodes()) {
    const bool host = host_nodes.contains(node);
    for (int i = 0; i < node->input_size(); ++i) {
      if (node->input(i).empty() || node->op_type() == "Shape") continue;
      auto& [by_host, by_device] = read[node->input(i)];
      (host || TakesFromHost(*node, i) ? by_host : by_device) = true;
    }
  }
  for (const auto& [value, readers] : read) {
    const auto& [by_host, by_device] = readers;
    const Node* producer = graph.Producer(value);
    if (producer == nullptr) {
      copies += graph.IsInput(value) && by_host && by_device ? 1 : 0;
    } else if (producer->op_type() != "Constant") {
      copies += host_nodes.contains(producer) ? by_device : by_host;
    }
  }
  return copies;
}

}  // namespace kvshare::graph
