#include "graph/match/value_numbers.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace kvshare::graph {
namespace {

constexpr size_t kMostBytes = 1U << 16;  // of constants that are compared by what they hold
constexpr int64_t kMostNodes = 1 << 17;  // of functions, in all their calls
constexpr int kMostCalls = 16;           // within each other
constexpr int64_t kAbsent = 0;
constexpr int64_t kUnknown = -1;

using Numbers = std::unordered_map<std::string, int64_t>;
using Imports = std::map<std::string, int64_t>;                         // versions by domain
using Attributes = std::map<std::string, const onnx::AttributeProto*>;  // by their names in a node

// The main graph, or one call of a function.
struct Scope {
  Imports imports;
  Attributes given;  // of the call
  Numbers numbers;   // of the values
  int calls = 0;     // around this one
};

struct Function {
  const onnx::FunctionProto* proto;
  Imports imports;
};

template <typename Proto>
Imports ImportsOf(const Proto& proto) {
  Imports imports;
  for (const auto& import : proto.opset_import()) imports[CanonicalDomain(import.domain())] = import.version();
  return imports;
}

// A function's domain, name and overload.
template <typename Named>
std::string FunctionKey(const Named& named, const std::string& name) {
  return CanonicalDomain(named.domain()) + '\0' + name + '\0' + named.overload();
}

void Append(std::string& key, int64_t number) { key.append(std::to_string(number)).push_back(' '); }
void Append(std::string& key, std::string_view text) {
  Append(key, static_cast<int64_t>(text.size()));
  key.append(text);
}

// Does a node of a known operator make the same whenever its operands are the same?
bool IsRepeatable(const Node& node, int64_t version) {
  // Random ones, and one that writes into its operands.
  static constexpr std::array<std::string_view, 11> kUnrepeatable = {
      "Bernoulli",   "Multinomial",    "RandomNormal",       "RandomNormalLike", "RandomUniform", "RandomUniformLike",
      "BiasDropout", "BitmaskDropout", "BitmaskBiasDropout", "Sampling",         "PagedAttention"};
  constexpr int64_t kFirstThatDropsOnRequest = 7;  // a version of Dropout
  if (std::ranges::find(kUnrepeatable, node.op_type()) != kUnrepeatable.end()) return false;
  if (node.op_type() == "Dropout") return version >= kFirstThatDropsOnRequest && Input(node, 2).empty();
  return true;
}

bool IsKnownDomain(const std::string& domain) {
  return domain.empty() || domain == "ai.onnx.ml" || domain == kMicrosoft || domain == kKvshare;
}

class Numberer {
 public:
  explicit Numberer(const Graph& graph) : graph_(graph) {
    for (const auto& function : graph.model().functions())
      functions_[FunctionKey(function, function.name())] = {&function, ImportsOf(function)};
  }

  Numbers Run(const ValueNumbers::Leaders& leaders) {
    Scope scope{.imports = ImportsOf(graph_.model()), .given = {}, .numbers = {}};
    const auto& proto = graph_.proto();
    for (const auto& initializer : proto.initializer()) scope.numbers[initializer.name()] = NumberOf(initializer);
    for (const auto& tensor : proto.sparse_initializer()) scope.numbers[tensor.values().name()] = Fresh(1);
    for (const auto& input : proto.input()) {
      const auto leader = leaders.find(input.name());
      scope.numbers[input.name()] = Intern("input " + (leader == leaders.end() ? input.name() : leader->second), 1);
    }
    for (const Node* node : graph_.nodes()) Number(*node, scope);
    return std::move(scope.numbers);
  }

 private:
  int64_t Fresh(int count) { return std::exchange(next_, next_ + count); }

  // The first of `count` numbers in a row that belong to `key`.
  int64_t Intern(const std::string& key, int count) {
    const auto [found, is_new] = known_.try_emplace(key, next_);
    if (is_new) Fresh(count);
    return found->second;
  }

  int64_t NumberOf(const onnx::TensorProto& tensor) {
    if (tensor.ByteSizeLong() > kMostBytes) return large_.try_emplace(&tensor, next_++).first->second;
    onnx::TensorProto nameless = tensor;
    nameless.clear_name();
    nameless.clear_doc_string();
    return Intern("tensor " + nameless.SerializeAsString(), 1);
  }

  // kAbsent where the operand is; kUnknown where a function reads what nothing in it makes.
  static int64_t Find(const Scope& scope, const std::string& value) {
    if (value.empty()) return kAbsent;
    const auto found = scope.numbers.find(value);
    return found == scope.numbers.end() ? kUnknown : found->second;
  }
  int64_t OrFresh(int64_t number) { return number == kAbsent || number == kUnknown ? Fresh(1) : number; }

  // Those that the node has, where a function hands its own on to it too.
  static Attributes AttributesOf(const Node& node, const Scope& scope) {
    Attributes attributes;
    for (const auto& attribute : node.attribute()) {
      if (attribute.ref_attr_name().empty()) {
        attributes[attribute.name()] = &attribute;
      } else if (const auto given = scope.given.find(attribute.ref_attr_name()); given != scope.given.end()) {
        attributes[attribute.name()] = given->second;
      }
    }
    return attributes;
  }

  // The computation of a node as text, operands included; nothing where the text does not determine the result.
  static std::optional<std::string> KeyOf(const Node& node, const Attributes& attributes, const Scope& scope) {
    const std::string& domain = DomainOf(node);
    const auto import = scope.imports.find(domain);
    const int64_t version = import == scope.imports.end() ? 0 : import->second;
    if (!IsKnownDomain(domain) || !IsRepeatable(node, version)) return std::nullopt;
    std::string key = "node ";
    for (const std::string& text : {domain, node.op_type()}) Append(key, text);
    for (const int64_t number : {version, static_cast<int64_t>(node.output_size())}) Append(key, number);
    for (const auto& [name, attribute] : attributes) {
      if (attribute->has_g() || attribute->graphs_size() > 0 || attribute->ByteSizeLong() > kMostBytes)
        return std::nullopt;
      onnx::AttributeProto value = *attribute;
      value.set_name(name);
      value.clear_doc_string();
      Append(key, value.SerializeAsString());
    }
    key.push_back('(');
    for (const auto& input : node.input()) {
      const int64_t number = Find(scope, input);
      if (number == kUnknown) return std::nullopt;
      Append(key, number);
    }
    return key;
  }

  void Number(const Node& node, Scope& scope) {
    const auto function = functions_.find(FunctionKey(node, node.op_type()));
    const Attributes attributes = AttributesOf(node, scope);
    if (function != functions_.end()) return Call(node, function->second, attributes, scope);
    if (DomainOf(node).empty() && node.op_type() == "Identity" && node.output_size() == 1) {
      scope.numbers[node.output(0)] = OrFresh(Find(scope, Input(node, 0)));
      return;
    }
    if (const auto value = attributes.find("value");
        DomainOf(node).empty() && node.op_type() == "Constant" && value != attributes.end() && value->second->has_t()) {
      scope.numbers[Output(node, 0)] = NumberOf(value->second->t());
      return;
    }
    const auto key = KeyOf(node, attributes, scope);
    const int64_t first = key ? Intern(*key, node.output_size()) : Fresh(node.output_size());
    for (int i = 0; i < node.output_size(); ++i)
      if (!node.output(i).empty()) scope.numbers[node.output(i)] = first + i;
  }

  void Call(const Node& node, const Function& function, const Attributes& attributes, Scope& scope) {
    Scope inner{.imports = function.imports, .given = {}, .numbers = {}, .calls = scope.calls + 1};
    nodes_ += function.proto->node_size();
    const bool looks = inner.calls <= kMostCalls && nodes_ <= kMostNodes;
    if (looks) {
      for (const auto& standard : function.proto->attribute_proto()) inner.given[standard.name()] = &standard;
      for (const auto& [name, attribute] : attributes) inner.given[name] = attribute;
      for (int i = 0; i < function.proto->input_size(); ++i)
        inner.numbers[function.proto->input(i)] = Find(scope, Input(node, i));
      for (const Node& each : function.proto->node()) Number(each, inner);
    }
    for (int i = 0; i < node.output_size(); ++i) {
      const bool has = looks && i < function.proto->output_size();
      if (!node.output(i).empty())
        scope.numbers[node.output(i)] = OrFresh(has ? Find(inner, function.proto->output(i)) : kUnknown);
    }
  }

  const Graph& graph_;
  std::unordered_map<std::string, Function> functions_;
  std::unordered_map<std::string, int64_t> known_;  // the first number of what a key says
  std::unordered_map<const onnx::TensorProto*, int64_t> large_;
  int64_t next_ = 1;
  int64_t nodes_ = 0;  // of functions that were looked through
};

}  // namespace

ValueNumbers::ValueNumbers(const Graph& graph, const Leaders& leaders) : numbers_(Numberer(graph).Run(leaders)) {}

int64_t ValueNumbers::Of(const std::string& value) const {
  const auto found = numbers_.find(value);
  return found == numbers_.end() ? 0 : found->second;
}

}  // namespace kvshare::graph
