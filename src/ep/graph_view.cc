#include "ep/graph_view.h"

namespace kvshare::ep {
namespace {

using ort::FromOrt;

// A string that ORT keeps: `get` fills a pointer to it.
template <typename Get>
Result<std::string> Kept(const OrtApi& api, Get get) {
  const char* text = nullptr;
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, get(&text)));
  return std::string(text != nullptr ? text : "");
}

// A scalar attribute of type T.
template <typename T>
std::optional<T> ScalarOf(const OrtApi& api, const OrtOpAttr* attribute, OrtOpAttrType type) {
  T value{};
  size_t size = 0;
  if (attribute == nullptr || !FromOrt(api, api.ReadOpAttr(attribute, type, &value, sizeof(value), &size)).ok())
    return std::nullopt;
  return value;
}

// An attribute of several elements: the first call says how many bytes they take, and fails where there are any.
template <typename Elements>
std::optional<Elements> ElementsOf(const OrtApi& api, const OrtOpAttr* attribute, OrtOpAttrType type) {
  if (attribute == nullptr) return std::nullopt;
  OrtOpAttrType actual = ORT_OP_ATTR_UNDEFINED;
  if (!FromOrt(api, api.OpAttr_GetType(attribute, &actual)).ok() || actual != type) return std::nullopt;
  size_t bytes = 0;
  static_cast<void>(FromOrt(api, api.ReadOpAttr(attribute, type, nullptr, 0, &bytes)));
  Elements elements(bytes / sizeof(typename Elements::value_type), typename Elements::value_type{});
  if (bytes > 0 && !FromOrt(api, api.ReadOpAttr(attribute, type, elements.data(), bytes, &bytes)).ok())
    return std::nullopt;
  return elements;
}

}  // namespace

Result<std::vector<const OrtNode*>> NodesOf(const OrtApi& api, const OrtGraph* graph) {
  size_t count = 0;
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.Graph_GetNumNodes(graph, &count)));
  std::vector<const OrtNode*> nodes(count);
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.Graph_GetNodes(graph, nodes.data(), count)));
  return nodes;
}

Result<std::vector<const OrtValueInfo*>> InputsOf(const OrtApi& api, const OrtNode* node) {
  size_t count = 0;
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.Node_GetNumInputs(node, &count)));
  std::vector<const OrtValueInfo*> values(count);
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.Node_GetInputs(node, values.data(), count)));
  return values;
}

Result<std::vector<const OrtValueInfo*>> OutputsOf(const OrtApi& api, const OrtNode* node) {
  size_t count = 0;
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.Node_GetNumOutputs(node, &count)));
  std::vector<const OrtValueInfo*> values(count);
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.Node_GetOutputs(node, values.data(), count)));
  return values;
}

Result<std::string> NameOf(const OrtApi& api, const OrtValueInfo* value) {
  if (value == nullptr) return std::string();
  return Kept(api, [&](const char** name) { return api.GetValueInfoName(value, name); });
}

Result<TensorType> TypeOf(const OrtApi& api, const OrtValueInfo* value) {
  TensorType result;
  const OrtTypeInfo* info = nullptr;
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  // ORT has no type for some values, and says so by an error.
  if (value == nullptr || !FromOrt(api, api.GetValueInfoTypeInfo(value, &info)).ok() || info == nullptr) return result;
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.CastTypeInfoToTensorInfo(info, &tensor)));
  if (tensor == nullptr) return result;
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.GetTensorElementType(tensor, &result.type)));
  size_t rank = 0;
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.GetDimensionsCount(tensor, &rank)));
  result.dims.resize(rank);
  std::vector<const char*> symbols(rank, nullptr);
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.GetDimensions(tensor, result.dims.data(), rank)));
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.GetSymbolicDimensions(tensor, symbols.data(), rank)));
  for (const char* symbol : symbols) result.symbols.emplace_back(symbol != nullptr ? symbol : "");
  return result;
}

Result<std::string> DomainOf(const OrtApi& api, const OrtNode* node) {
  KVSHARE_ASSIGN_OR_RETURN(std::string domain,
                           Kept(api, [&](const char** text) { return api.Node_GetDomain(node, text); }));
  return domain == "ai.onnx" ? std::string() : std::move(domain);
}

Result<std::string> OpOf(const OrtApi& api, const OrtNode* node) {
  return Kept(api, [&](const char** text) { return api.Node_GetOperatorType(node, text); });
}

Result<std::string> NodeNameOf(const OrtApi& api, const OrtNode* node) {
  return Kept(api, [&](const char** text) { return api.Node_GetName(node, text); });
}

std::optional<int64_t> IntOf(const OrtApi& api, const OrtOpAttr* attribute) {
  return ScalarOf<int64_t>(api, attribute, ORT_OP_ATTR_INT);
}

std::optional<float> FloatOf(const OrtApi& api, const OrtOpAttr* attribute) {
  return ScalarOf<float>(api, attribute, ORT_OP_ATTR_FLOAT);
}

std::optional<std::string> StringOf(const OrtApi& api, const OrtOpAttr* attribute) {
  auto text = ElementsOf<std::string>(api, attribute, ORT_OP_ATTR_STRING);
  while (text && !text->empty() && text->back() == '\0') text->pop_back();  // ORT counts the terminating zero
  return text;
}

std::optional<std::vector<int64_t>> IntsOf(const OrtApi& api, const OrtOpAttr* attribute) {
  return ElementsOf<std::vector<int64_t>>(api, attribute, ORT_OP_ATTR_INTS);
}

Result<GraphNode> GraphNode::Make(const OrtApi& api, const OrtNode* node) {
  GraphNode made(api, node);
  KVSHARE_ASSIGN_OR_RETURN(made.name_, NodeNameOf(api, node));
  KVSHARE_ASSIGN_OR_RETURN(made.domain_, DomainOf(api, node));
  KVSHARE_ASSIGN_OR_RETURN(made.op_, OpOf(api, node));
  KVSHARE_ASSIGN_OR_RETURN(const auto inputs, InputsOf(api, node));
  for (const OrtValueInfo* value : inputs) {
    KVSHARE_ASSIGN_OR_RETURN(made.inputs_.emplace_back(), NameOf(api, value));
    KVSHARE_ASSIGN_OR_RETURN(const TensorType type, TypeOf(api, value));
    made.types_.push_back(type.type);
  }
  KVSHARE_ASSIGN_OR_RETURN(const auto outputs, OutputsOf(api, node));
  for (const OrtValueInfo* value : outputs) {
    KVSHARE_ASSIGN_OR_RETURN(made.outputs_.emplace_back(), NameOf(api, value));
  }
  return made;
}

const OrtOpAttr* GraphNode::Attribute(const char* name) const {
  const OrtOpAttr* attribute = nullptr;
  return FromOrt(*api_, api_->Node_GetAttributeByName(node_, name, &attribute)).ok() ? attribute : nullptr;
}

}  // namespace kvshare::ep
