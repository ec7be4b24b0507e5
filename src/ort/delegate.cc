#include "ort/delegate.h"

#include <utility>

namespace kvshare::ort {
namespace {

// Owns the OrtOpAttrs while CreateOp copies them.
class Attributes {
 public:
  explicit Attributes(const OrtApi& api) : api_(api) {}
  ~Attributes() {
    for (OrtOpAttr* attribute : attributes_) api_.ReleaseOpAttr(attribute);
  }
  Attributes(const Attributes&) = delete;
  Attributes& operator=(const Attributes&) = delete;

  Status Add(const char* name, const void* data, size_t length, OrtOpAttrType type) {
    OrtOpAttr* attribute = nullptr;
    KVSHARE_RETURN_IF_ERROR(FromOrt(api_, api_.CreateOpAttr(name, data, static_cast<int>(length), type, &attribute)));
    attributes_.push_back(attribute);
    return {};
  }
  const OrtOpAttr* const* data() const { return attributes_.data(); }
  int size() const { return static_cast<int>(attributes_.size()); }

 private:
  const OrtApi& api_;
  std::vector<OrtOpAttr*> attributes_;
};

}  // namespace

Result<OutputOrTemporary> OutputOrTemporary::Make(const CallContext& context, size_t index,
                                                  ONNXTensorElementDataType type, std::span<const int64_t> dims) {
  const OrtApi& api = context.api();
  KVSHARE_ASSIGN_OR_RETURN(const Tensor output, context.Output(index, dims));
  if (output) return OutputOrTemporary(api, output.value, false);
  OrtAllocator* allocator = nullptr;  // ORT's own, not to be released
  OrtValue* value = nullptr;
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.GetAllocatorWithDefaultOptions(&allocator)));
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.CreateTensorAsOrtValue(allocator, dims.data(), dims.size(), type, &value)));
  return OutputOrTemporary(api, value, true);
}

OutputOrTemporary::OutputOrTemporary(OutputOrTemporary&& other) noexcept
    : api_(other.api_), value_(other.value_), owned_(std::exchange(other.owned_, false)) {}

OutputOrTemporary::~OutputOrTemporary() {
  if (owned_) api_.ReleaseValue(value_);
}

Result<std::unique_ptr<Delegate>> Delegate::Create(const NodeInfo& node, const char* domain, const char* op,
                                                   std::span<const int> versions,
                                                   std::span<const TypeConstraint> constraints,
                                                   const AttributeNames& names, size_t inputs, size_t outputs) {
  const OrtApi& api = node.api();
  Attributes attributes(api);
  for (const char* name : names.ints)
    if (const auto value = node.Int(name)) KVSHARE_RETURN_IF_ERROR(attributes.Add(name, &*value, 1, ORT_OP_ATTR_INT));
  for (const char* name : names.floats)
    if (const auto value = node.Float(name))
      KVSHARE_RETURN_IF_ERROR(attributes.Add(name, &*value, 1, ORT_OP_ATTR_FLOAT));
  for (const char* name : names.strings)
    if (const auto value = node.String(name))
      KVSHARE_RETURN_IF_ERROR(attributes.Add(name, value->c_str(), value->size(), ORT_OP_ATTR_STRING));

  std::vector<const char*> constraint_names;
  std::vector<ONNXTensorElementDataType> constraint_types;
  for (const TypeConstraint& constraint : constraints) {
    constraint_names.push_back(constraint.name);
    constraint_types.push_back(constraint.type);
  }
  Status status = Status::Internal("no version to try");
  for (const int version : versions) {
    OrtOp* made = nullptr;
    status = FromOrt(api, api.CreateOp(node.raw(), op, domain, version, constraint_names.data(),
                                       constraint_types.data(), static_cast<int>(constraints.size()), attributes.data(),
                                       attributes.size(), static_cast<int>(inputs), static_cast<int>(outputs), &made));
    if (status.ok()) return std::unique_ptr<Delegate>(new Delegate(api, made, inputs));
  }
  return status;
}

Delegate::~Delegate() { api_.ReleaseOp(op_); }

Status Delegate::Invoke(const CallContext& context, std::span<const OrtValue* const> inputs,
                        std::span<OrtValue* const> outputs) const {
  return FromOrt(api_, api_.InvokeOp(context.raw(), op_, inputs.data(), static_cast<int>(inputs.size()), outputs.data(),
                                     static_cast<int>(outputs.size())));
}

}  // namespace kvshare::ort
