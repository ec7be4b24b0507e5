#include "graph/placement/ort_kernels.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <utility>

#include "core/ops.h"

namespace kvshare::graph {
namespace {

struct Row {
  Provider provider;
  std::string_view domain, op;
  int64_t first, last;  // opsets; last 0: open
  std::string_view slots, types, host;
  int since, until;  // releases
};

constexpr Provider kCuda = Provider::kCuda;
constexpr Provider kCpu = Provider::kCpu;
constexpr Row kRows[] = {
#define KVSHARE_ORT_KERNEL(...) {__VA_ARGS__},
#define KVSHARE_ORT_UNFINISHED(release, date)
#include "graph/placement/ort_cuda_kernels.inc"
#undef KVSHARE_ORT_UNFINISHED
#undef KVSHARE_ORT_KERNEL
};

constexpr std::pair<int, std::string_view> kUnfinished[] = {
#define KVSHARE_ORT_KERNEL(...)
#define KVSHARE_ORT_UNFINISHED(release, date) {release, date},
#include "graph/placement/ort_cuda_kernels.inc"
#undef KVSHARE_ORT_UNFINISHED
#undef KVSHARE_ORT_KERNEL
};

constexpr auto kNewestFirst = [](const Row* a, const Row* b) { return a->first > b->first; };

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const size_t end = std::min(text.find(separator), text.size());
    parts.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return parts;
}

// A row's slots and the types that each of its variables may have.
class Signature {
 public:
  explicit Signature(const Row& row) {
    const size_t middle = row.slots.find('>');
    inputs_ = Split(row.slots.substr(0, middle), ',');
    outputs_ = Split(row.slots.substr(middle + 1), ',');
    for (const std::string_view variable : Split(row.types, ';')) {
      const size_t equals = variable.find('=');
      types_[variable.substr(0, equals)] = Split(variable.substr(equals + 1), ',');
    }
  }

  // The first input whose type no variable of the row takes; -1: none. Binds the variables.
  int Refuses(const std::vector<std::string>& types) {
    for (int i = 0; i < static_cast<int>(types.size()) && !inputs_.empty(); ++i) {
      const std::string_view slot = inputs_[std::min<size_t>(static_cast<size_t>(i), inputs_.size() - 1)];
      const std::string& type = types[static_cast<size_t>(i)];
      if (type.empty()) continue;
      bound_.try_emplace(slot, type);
      const auto allowed = types_.find(slot);
      if (allowed != types_.end() && std::ranges::find(allowed->second, type) == allowed->second.end()) return i;
    }
    return -1;
  }
  // Is a type, which decides, not known?
  bool Guesses(const std::vector<std::string>& types, const Node& node) const {
    for (int i = 0; i < std::min(static_cast<int>(types.size()), static_cast<int>(inputs_.size())); ++i)
      if (!Input(node, i).empty() && types[static_cast<size_t>(i)].empty() &&
          !bound_.contains(inputs_[static_cast<size_t>(i)]) && types_.contains(inputs_[static_cast<size_t>(i)]))
        return true;
    return false;
  }
  std::string OutputType(int output) const {
    if (outputs_.empty()) return "";
    const std::string_view slot = outputs_[std::min<size_t>(static_cast<size_t>(output), outputs_.size() - 1)];
    if (const auto bound = bound_.find(slot); bound != bound_.end()) return bound->second;
    const auto types = types_.find(slot);
    if (types != types_.end()) return types->second.size() == 1 ? std::string(types->second.front()) : "";
    return std::string(slot);
  }

 private:
  std::vector<std::string_view> inputs_, outputs_;
  std::map<std::string_view, std::vector<std::string_view>> types_;
  std::map<std::string_view, std::string> bound_;
};

// The element type of an output that an attribute gives, and no input.
std::string TypeByAttribute(const Node& node) {
  if (node.op_type() == "Cast") return std::string(TypeName(static_cast<int>(IntAttribute(node, "to"))));
  const auto* value = FindAttribute(node, "value");
  if (node.op_type() == "ConstantOfShape")
    return value == nullptr ? "f32" : std::string(TypeName(value->t().data_type()));
  return "";
}

void AddOutputTypes(KernelFacts& facts, const Node& node, const Signature& signature) {
  const std::string own = TypeByAttribute(node);
  for (int output = 0; output < node.output_size(); ++output)
    facts.output_types.push_back(own.empty() ? signature.OutputType(output) : own);
}

void AddHostSlots(KernelFacts& facts, std::string_view host) {
  for (const std::string_view slot : Split(host, ' ')) {
    int index = 0;
    std::from_chars(slot.data() + 1, slot.data() + slot.size(), index);
    (slot.front() == 'i' ? facts.host_inputs : facts.host_outputs).insert(index);
  }
}

// The rows of the operator that hold at `opset`, the newest first: what comes after it replaces it.
std::vector<const Row*> RowsOf(const Node& node, int64_t opset, int release) {
  std::vector<const Row*> rows;
  for (const Row& row : kRows)
    if (row.domain == DomainOf(node) && row.op == node.op_type() && row.since <= release && release <= row.until &&
        row.first <= opset)
      rows.push_back(&row);
  std::ranges::sort(rows, kNewestFirst);
  return rows;
}

std::string OwnOutputType(const Operator& op, const Slot& output, const std::vector<std::string>& types) {
  switch (output.type) {
    case SlotType::kF32: return "f32";
    case SlotType::kI32: return "i32";
    case SlotType::kI64: return "i64";
    case SlotType::kAny: return "";
    case SlotType::kT:
    case SlotType::kCache: break;
  }
  for (size_t i = 0; i < std::min(types.size(), op.inputs.size()); ++i)
    if (op.inputs[i].type == output.type && !types[i].empty()) return types[i];
  return types.empty() ? "" : types.front();  // no past, no external keys: the cache is of the query's type
}

// Why kvshare's operator is refused on CUDA; "" where it is served: docs/ops.md, Providers.
std::string WhyOwnIsRefused(const Node& node, const Operator& op, const std::vector<std::string>& types) {
  static const std::set<std::string_view> kMaskTypes = {"", "b", "f32", "f16", "bf16"};
  if (FindAttribute(node, "window_cache_rows") != nullptr) return "no CUDA kernel with window_cache_rows";
  for (size_t i = 0; i < std::min(types.size(), op.inputs.size()); ++i) {
    const bool is_mask = node.op_type() == "Attention" && i == attention::kMask;
    if ((op.inputs[i].type == SlotType::kT && types[i] == "f64") || (is_mask && !kMaskTypes.contains(types[i])))
      return fmt::format("no CUDA kernel for {} of {}", op.inputs[i].name, types[i]);
  }
  return "";
}

// kvshare's own operators, by core/ops.h.
KernelFacts OwnKernel(const Node& node, const Operator& op, const std::vector<std::string>& types) {
  KernelFacts facts;
  facts.why = WhyOwnIsRefused(node, op, types);
  facts.provider = facts.why.empty() ? Provider::kCuda : Provider::kCpu;
  for (size_t i = 0; i < op.inputs.size(); ++i)
    if (op.inputs[i].on_host) facts.host_inputs.insert(static_cast<int>(i));
  for (size_t i = 0; i < static_cast<size_t>(node.output_size()); ++i)
    facts.output_types.push_back(i < op.outputs.size() ? OwnOutputType(op, op.outputs[i], types) : "");
  return facts;
}

}  // namespace

std::optional<int> ReleaseOf(const std::string& text) {
  constexpr std::string_view kMajor = "1.";
  if (!text.starts_with(kMajor)) return std::nullopt;
  int minor = 0;
  const char* const end = text.data() + text.size();
  const auto read = std::from_chars(text.data() + kMajor.size(), end, minor);
  if (read.ec != std::errc() || (read.ptr != end && *read.ptr != '.')) return std::nullopt;
  const bool known = std::ranges::any_of(kRows, [&](const Row& r) { return r.since <= minor && minor <= r.until; });
  return known ? std::optional(minor) : std::nullopt;
}

std::string KnownReleases() {
  return fmt::format("1.{} to 1.{}", std::ranges::min(kRows, {}, &Row::since).since,
                     std::ranges::max(kRows, {}, &Row::until).until);
}

std::string_view UnfinishedSourcesOf(int release) {
  const auto* const found = std::ranges::find(kUnfinished, release, [](const auto& one) { return one.first; });
  return found == std::end(kUnfinished) ? "" : found->second;
}

std::string_view TypeName(int element_type) {
  switch (element_type) {
    case onnx::TensorProto::FLOAT: return "f32";
    case onnx::TensorProto::FLOAT16: return "f16";
    case onnx::TensorProto::BFLOAT16: return "bf16";
    case onnx::TensorProto::DOUBLE: return "f64";
    case onnx::TensorProto::BOOL: return "b";
    case onnx::TensorProto::STRING: return "s";
    case onnx::TensorProto::INT4: return "i4";
    case onnx::TensorProto::INT8: return "i8";
    case onnx::TensorProto::INT16: return "i16";
    case onnx::TensorProto::INT32: return "i32";
    case onnx::TensorProto::INT64: return "i64";
    case onnx::TensorProto::UINT4: return "u4";
    case onnx::TensorProto::UINT8: return "u8";
    case onnx::TensorProto::UINT16: return "u16";
    case onnx::TensorProto::UINT32: return "u32";
    case onnx::TensorProto::UINT64: return "u64";
    case onnx::TensorProto::FLOAT8E4M3FN: return "f8e4m3fn";
    case onnx::TensorProto::FLOAT8E5M2: return "f8e5m2";
    default: return "";
  }
}

KernelFacts LookUpKernel(const Node& node, int64_t opset, const std::vector<std::string>& input_types, int release) {
  const Operator* const own = DomainOf(node) == kKvshare ? FindOperator(kKvshare, node.op_type()) : nullptr;
  if (own != nullptr) return OwnKernel(node, *own, input_types);
  KernelFacts facts;
  const std::vector<const Row*> rows = RowsOf(node, opset, release);
  if (rows.empty()) {
    facts.why = "no kernel in the table";
    facts.output_types.resize(static_cast<size_t>(node.output_size()));
    return facts;
  }
  // An open row is of its own opset alone, and a closed one of all that it names.
  const int64_t version = rows.front()->first;
  facts.provider = Provider::kCpu;
  facts.why = "no CUDA kernel";
  for (const Row* row : rows) {
    if (row->first < version && (row->last == 0 || row->last < version)) continue;
    Signature signature(*row);
    const int refused = signature.Refuses(input_types);
    if (row->provider == kCuda && refused >= 0)
      facts.why = fmt::format("no CUDA kernel for input {} of {}", refused, input_types[static_cast<size_t>(refused)]);
    if (facts.output_types.empty()) AddOutputTypes(facts, node, signature);
    if (row->provider == kCpu || refused >= 0) continue;
    facts.provider = signature.Guesses(input_types, node) ? Provider::kUnknown : kCuda;
    facts.why = facts.provider == kCuda ? "" : "an input's type is not known";
    AddHostSlots(facts, row->host);
    break;
  }
  return facts;
}

}  // namespace kvshare::graph
