#include "ep/ort_model.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/ops.h"
#include "ep/graph_view.h"
#include "graph/constants.h"

namespace kvshare::ep {
namespace {

using ort::FromOrt;

constexpr int64_t kMostSmallElements = 64;
constexpr int64_t kIrVersion = 10;  // any: the host has read the model already

// The operators between a mask and the constants that it is made of, where shapes are fixed. No weights pass them.
bool MakesMasks(const onnx::NodeProto& node) {
  static constexpr std::array<std::string_view, 7> ops = {"And",      "Cast",      "Expand", "GatherND",
                                                          "Identity", "Unsqueeze", "Where"};
  return node.domain().empty() && std::ranges::find(ops, node.op_type()) != ops.end();
}

// The values that the masks of a graph's Attention nodes are made of.
std::unordered_set<std::string> PartsOfMasks(const onnx::GraphProto& graph) {
  std::unordered_map<std::string, const onnx::NodeProto*> makers;
  std::vector<std::string> open;
  for (const auto& node : graph.node()) {
    for (const auto& output : node.output()) makers.emplace(output, &node);
    if (node.op_type() == "Attention" && node.input_size() > int{attention::kMask})
      open.push_back(node.input(attention::kMask));
  }
  std::unordered_set<std::string> parts;
  while (!open.empty()) {
    std::string value = std::move(open.back());
    open.pop_back();
    const auto maker = makers.find(value);
    if (!parts.insert(std::move(value)).second || maker == makers.end() || !MakesMasks(*maker->second)) continue;
    open.insert(open.end(), maker->second->input().begin(), maker->second->input().end());
  }
  return parts;
}

// One graph, and recursively its bodies.
class GraphWriter {
 public:
  explicit GraphWriter(const OrtApi& api) : api_(api) {}

  Status Write(const OrtGraph* graph, onnx::GraphProto& proto) {
    proto.set_name("graph");
    KVSHARE_RETURN_IF_ERROR(WriteInitializers(graph, proto));
    KVSHARE_ASSIGN_OR_RETURN(const auto inputs, Values(graph, api_.Graph_GetNumInputs, api_.Graph_GetInputs));
    for (const OrtValueInfo* value : inputs) KVSHARE_RETURN_IF_ERROR(WriteValue(value, *proto.add_input()));
    KVSHARE_ASSIGN_OR_RETURN(const auto outputs, Values(graph, api_.Graph_GetNumOutputs, api_.Graph_GetOutputs));
    for (const OrtValueInfo* value : outputs) KVSHARE_RETURN_IF_ERROR(WriteValue(value, *proto.add_output()));
    KVSHARE_ASSIGN_OR_RETURN(const auto nodes, NodesOf(api_, graph));
    for (const OrtNode* node : nodes) KVSHARE_RETURN_IF_ERROR(WriteNode(node, proto));
    return WriteMaskConstants(graph, proto);
  }

 private:
  template <typename Count, typename Get>
  Result<std::vector<const OrtValueInfo*>> Values(const OrtGraph* graph, Count count, Get get) {
    size_t size = 0;
    KVSHARE_RETURN_IF_ERROR(FromOrt(api_, count(graph, &size)));
    std::vector<const OrtValueInfo*> values(size);
    KVSHARE_RETURN_IF_ERROR(FromOrt(api_, get(graph, values.data(), size)));
    return values;
  }

  Status WriteValue(const OrtValueInfo* value, onnx::ValueInfoProto& proto) {
    KVSHARE_ASSIGN_OR_RETURN(*proto.mutable_name(), NameOf(api_, value));
    KVSHARE_ASSIGN_OR_RETURN(const TensorType type, TypeOf(api_, value));
    if (type.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED) return {};
    auto& tensor = *proto.mutable_type()->mutable_tensor_type();
    tensor.set_elem_type(type.type);
    // ORT gives no extents both for a scalar and for an unknown rank.
    for (size_t i = 0; i < type.dims.size(); ++i) {
      auto& dim = *tensor.mutable_shape()->add_dim();
      if (type.dims[i] >= 0) {
        dim.set_dim_value(type.dims[i]);
      } else if (!type.symbols[i].empty()) {
        dim.set_dim_param(type.symbols[i]);
      }
    }
    return {};
  }

  Status WriteInitializers(const OrtGraph* graph, onnx::GraphProto& proto) {
    KVSHARE_ASSIGN_OR_RETURN(const auto values,
                             Values(graph, api_.Graph_GetNumInitializers, api_.Graph_GetInitializers));
    for (const OrtValueInfo* value : values) {
      KVSHARE_ASSIGN_OR_RETURN(const TensorType type, TypeOf(api_, value));
      auto& tensor = *proto.add_initializer();
      KVSHARE_ASSIGN_OR_RETURN(*tensor.mutable_name(), NameOf(api_, value));
      tensor.set_data_type(type.type);
      tensor.mutable_dims()->Assign(type.dims.begin(), type.dims.end());
      if (HasUpTo(kMostSmallElements, type.dims)) KVSHARE_RETURN_IF_ERROR(WriteElements(value, tensor));
    }
    return {};
  }

  // Larger constants are read by their elements only where they are masks.
  Status WriteMaskConstants(const OrtGraph* graph, onnx::GraphProto& proto) {
    const auto parts = PartsOfMasks(proto);
    if (parts.empty()) return {};
    KVSHARE_ASSIGN_OR_RETURN(const auto values,
                             Values(graph, api_.Graph_GetNumInitializers, api_.Graph_GetInitializers));
    for (size_t i = 0; i < values.size(); ++i) {
      auto& tensor = *proto.mutable_initializer(static_cast<int>(i));
      if (!tensor.has_raw_data() && parts.contains(tensor.name()) && HasUpTo(graph::kMostElements, tensor.dims()))
        KVSHARE_RETURN_IF_ERROR(WriteElements(values[i], tensor));
    }
    return {};
  }

  template <typename Dims>
  static bool HasUpTo(int64_t most, const Dims& dims) {
    int64_t count = 1;
    for (const int64_t dim : dims) count = count > most ? count : count * dim;
    return count <= most;
  }

  Status WriteElements(const OrtValueInfo* value, onnx::TensorProto& tensor) {
    if (tensor.data_type() == onnx::TensorProto::STRING) return {};
    const OrtValue* elements = nullptr;
    // A constant that cannot be read keeps no elements, and no claim rests on it.
    if (!FromOrt(api_, api_.ValueInfo_GetInitializerValue(value, &elements)).ok() || elements == nullptr) return {};
    size_t bytes = 0;
    const void* data = nullptr;
    KVSHARE_RETURN_IF_ERROR(FromOrt(api_, api_.GetTensorSizeInBytes(elements, &bytes)));
    KVSHARE_RETURN_IF_ERROR(FromOrt(api_, api_.GetTensorData(elements, &data)));
    tensor.set_raw_data(data, bytes);
    return {};
  }

  Status WriteNode(const OrtNode* node, onnx::GraphProto& graph) {
    auto& proto = *graph.add_node();
    KVSHARE_ASSIGN_OR_RETURN(*proto.mutable_name(), NodeNameOf(api_, node));
    KVSHARE_ASSIGN_OR_RETURN(*proto.mutable_domain(), DomainOf(api_, node));
    KVSHARE_ASSIGN_OR_RETURN(*proto.mutable_op_type(), OpOf(api_, node));
    KVSHARE_ASSIGN_OR_RETURN(const auto inputs, InputsOf(api_, node));
    for (const OrtValueInfo* value : inputs) {
      KVSHARE_ASSIGN_OR_RETURN(*proto.add_input(), NameOf(api_, value));
    }
    KVSHARE_ASSIGN_OR_RETURN(const auto outputs, OutputsOf(api_, node));
    for (const OrtValueInfo* value : outputs) {
      KVSHARE_ASSIGN_OR_RETURN(*proto.add_output(), NameOf(api_, value));
      if (!proto.output().rbegin()->empty()) KVSHARE_RETURN_IF_ERROR(WriteValue(value, *graph.add_value_info()));
    }
    KVSHARE_RETURN_IF_ERROR(WriteAttributes(node, proto));
    return WriteBodies(node, proto);
  }

  Status WriteAttributes(const OrtNode* node, onnx::NodeProto& proto) {
    size_t count = 0;
    KVSHARE_RETURN_IF_ERROR(FromOrt(api_, api_.Node_GetNumAttributes(node, &count)));
    std::vector<const OrtOpAttr*> attributes(count);
    KVSHARE_RETURN_IF_ERROR(FromOrt(api_, api_.Node_GetAttributes(node, attributes.data(), count)));
    for (const OrtOpAttr* attribute : attributes) {
      const char* name = nullptr;
      OrtOpAttrType type = ORT_OP_ATTR_UNDEFINED;
      KVSHARE_RETURN_IF_ERROR(FromOrt(api_, api_.OpAttr_GetName(attribute, &name)));
      KVSHARE_RETURN_IF_ERROR(FromOrt(api_, api_.OpAttr_GetType(attribute, &type)));
      if (type == ORT_OP_ATTR_GRAPH) continue;  // WriteBodies
      auto& written = *proto.add_attribute();
      written.set_name(name);
      WriteAttribute(attribute, type, written);
    }
    return {};
  }

  void WriteAttribute(const OrtOpAttr* attribute, OrtOpAttrType type, onnx::AttributeProto& proto) {
    if (type == ORT_OP_ATTR_INT) {
      proto.set_type(onnx::AttributeProto::INT);
      proto.set_i(IntOf(api_, attribute).value_or(0));
    } else if (type == ORT_OP_ATTR_FLOAT) {
      proto.set_type(onnx::AttributeProto::FLOAT);
      proto.set_f(FloatOf(api_, attribute).value_or(0));
    } else if (type == ORT_OP_ATTR_STRING) {
      proto.set_type(onnx::AttributeProto::STRING);
      proto.set_s(StringOf(api_, attribute).value_or(""));
    } else if (const auto ints = IntsOf(api_, attribute); type == ORT_OP_ATTR_INTS && ints) {
      proto.set_type(onnx::AttributeProto::INTS);
      proto.mutable_ints()->Assign(ints->begin(), ints->end());
    }
  }

  Status WriteBodies(const OrtNode* node, onnx::NodeProto& proto) {
    size_t count = 0;
    KVSHARE_RETURN_IF_ERROR(FromOrt(api_, api_.Node_GetNumSubgraphs(node, &count)));
    if (count == 0) return {};
    std::vector<const OrtGraph*> bodies(count);
    std::vector<const char*> names(count);
    KVSHARE_RETURN_IF_ERROR(FromOrt(api_, api_.Node_GetSubgraphs(node, bodies.data(), count, names.data())));
    for (size_t i = 0; i < count; ++i) {
      auto& attribute = *proto.add_attribute();
      attribute.set_name(names[i]);
      attribute.set_type(onnx::AttributeProto::GRAPH);
      KVSHARE_RETURN_IF_ERROR(Write(bodies[i], *attribute.mutable_g()));
    }
    return {};
  }

  const OrtApi& api_;
};

}  // namespace

Result<onnx::ModelProto> ModelOf(const OrtApi& api, const OrtGraph* graph) {
  onnx::ModelProto model;
  model.set_ir_version(kIrVersion);
  size_t count = 0;
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.Graph_GetNumOperatorSets(graph, &count)));
  std::vector<const char*> domains(count);
  std::vector<int64_t> versions(count);
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.Graph_GetOperatorSets(graph, domains.data(), versions.data(), count)));
  for (size_t i = 0; i < count; ++i) {
    auto& import = *model.add_opset_import();
    import.set_domain(domains[i]);
    import.set_version(versions[i]);
  }
  KVSHARE_RETURN_IF_ERROR(GraphWriter(api).Write(graph, *model.mutable_graph()));
  return model;
}

}  // namespace kvshare::ep
