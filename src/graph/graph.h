// A model's graphs as something to walk and edit: nodes in execution order, values by name. The main graph owns one
// Graph for each body of If, Loop and Scan, whatever their depth: a body sees the values of the graphs around it.
//
// A const Graph is only read. Edits are methods; each keeps the index of names true, so that a question after it costs
// what it cost before. Node pointers stay valid until the node is removed.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "graph/attributes.h"
#include "graph/graph_index.h"
#include "kvshare/status.h"
#include "onnx/onnx-ml.pb.h"

namespace kvshare::graph {

class Graph {
 public:
  // Takes `model`; `folder` is where its external data lies. Nodes may come in any order and are sorted, keeping the
  // given order where it is possible. kInvalidInput: a value produced twice, or by nothing, or out of itself.
  static Result<Graph> Make(onnx::ModelProto model, std::filesystem::path folder);
  Graph(Graph&& other) noexcept;
  Graph& operator=(Graph&&) = delete;
  ~Graph();

  // The model as it is now; of the main graph only.
  onnx::ModelProto Release() &&;
  // A copy of it, for comparison and tests.
  onnx::ModelProto Copy() const { return model(); }

  // The nodes of this graph alone, without those of its bodies.
  std::vector<const Node*> nodes() const;
  const onnx::GraphProto& proto() const;
  const onnx::ModelProto& model() const;

  // The bodies that `node` holds, and all of this graph.
  std::vector<const Graph*> BodiesOf(const Node& node) const;
  std::vector<const Graph*> bodies() const;
  std::vector<Graph*> bodies();
  // The model's functions that may hold attention, to look at: copies, with their domain in model(), name in proto().
  const std::vector<std::unique_ptr<Graph>>& functions() const { return functions_; }
  // Where this graph is: "" for the main one, "then_branch of If 'x'", "function 'f'".
  const std::string& place() const { return place_; }
  bool IsFunction() const { return is_function_; }
  // A name that this body gives a value of its own although a graph around it has it too; "" where there is none.
  const std::string& shadowed() const { return shadowed_; }

  // The graph, this one or one around it, that `value` belongs to; null if there is none.
  const Graph* OwnerOf(const std::string& value) const;
  Graph* OwnerOf(const std::string& value);

  // Null: a graph input, an initializer, or absent.
  const Node* Producer(const std::string& value) const;
  // `value`, or what Identity nodes make it of.
  const std::string& Origin(const std::string& value) const;
  // Each node of the value's graph that reads `value`, once, those whose bodies capture it included.
  const std::vector<const Node*>& Consumers(const std::string& value) const;
  // Is `value` an input or output of this graph or of one around it? A body's inputs are inputs as well.
  bool IsInput(const std::string& value) const;
  bool IsOutput(const std::string& value) const;
  bool IsRead(const std::string& value) const { return IsOutput(value) || !Consumers(value).empty(); }
  // Does `value` depend on `ancestor`? What a Loop or Scan hands to its body counts as what it first hands over.
  bool DependsOn(const std::string& value, const std::string& ancestor) const;

  // Constants: initializers and Constant nodes, inline or external. Nothing where `value` is not a small one.
  std::optional<std::vector<int64_t>> Ints(const std::string& value) const;
  std::optional<double> Scalar(const std::string& value) const;  // of any numeric type
  std::optional<std::vector<double>> Floats(const std::string& value) const;
  // The tensor behind a constant, null if `value` is none, or is not given as a tensor.
  const onnx::TensorProto* ConstantTensor(const std::string& value) const;

  // From graph inputs, outputs, value_info and initializers; 0 and nothing where unknown.
  int ElementType(const std::string& value) const;
  std::optional<std::vector<int64_t>> Shape(const std::string& value) const;  // -1: not fixed
  // The symbol of an extent, "sequence_length"; "" where it has none or is not declared.
  std::string ExtentName(const std::string& value, int64_t axis) const;

  // A node's op is a function of the model itself, whatever its name suggests.
  bool IsModelFunction(const Node& node) const;
  // `node` is ai.onnx's operator `op`: not null, and nothing of that name in another domain or in the model itself.
  bool IsOnnx(const Node* node, std::string_view op) const;

  // Edits, of nodes of this graph. New nodes go right before `where`; their outputs should be FreshName()s.
  const Node& InsertBefore(const Node& where, const std::string& op_type, const std::vector<std::string>& inputs,
                           const std::vector<std::string>& outputs);
  void Remove(const Node& node);
  void SetOp(const Node& node, const std::string& domain, const std::string& op_type);
  // With empty inputs before it where needed.
  void SetInput(const Node& node, int index, const std::string& value);
  void SetInputs(const Node& node, const std::vector<std::string>& inputs);
  // An output that goes must have no readers, one that comes must be a FreshName().
  void SetOutputs(const Node& node, const std::vector<std::string>& outputs);
  void SetAttribute(const Node& node, const onnx::AttributeProto& attribute);
  void SetInt(const Node& node, std::string_view attribute, int64_t value);
  void SetString(const Node& node, std::string_view attribute, const std::string& value);
  void ClearAttributes(const Node& node);

  // A name that no graph of the model has or had.
  std::string FreshName(const std::string& base) const;
  void AddInts(const std::string& name, const std::vector<int64_t>& values);
  void AddFloats(const std::string& name, const std::vector<float>& values);
  void RemoveInitializer(const std::string& name);
  void RemoveInput(const std::string& name);
  // The value itself stays, with what is declared of it.
  void RemoveOutput(const std::string& name);
  // Declares that the extent `axis` of `value` (from the end) is `extent`, where anything is declared of it.
  void SetExtent(const std::string& value, int64_t axis, int64_t extent);
  // The same, to a symbol.
  void SetExtent(const std::string& value, int64_t axis, const std::string& symbol);
  // Declares that the elements of `value` are of `type` (onnx::TensorProto), where anything is declared of it.
  void SetElementType(const std::string& value, int type);
  // Nodes in execution order again, after some were put before what they read. kInvalidInput: a cycle.
  Status Reorder();
  // Drops value_info of values that no longer exist, in bodies too.
  void TrimValueInfo();
  void RequireImport(const std::string& domain, int64_t version);
  // Raises the model's and its functions' imports of the domain to `version`, where they are older.
  void RaiseImport(const std::string& domain, int64_t version);

 private:
  struct Dependents;
  struct Removed;
  using Bodies = std::unordered_map<const Node*, std::vector<std::unique_ptr<Graph>>>;  // by the node that holds them

  Graph();
  const GraphIndex& index() const;
  // This graph's `node`, to edit.
  Node& Mutable(const Node& node) { return const_cast<Node&>(node); }  // NOLINT(cppcoreguidelines-pro-type-const-cast)
  void MakeIndices();                                                  // of this graph and those around it
  void AddRead(const std::string& value, const Node& reader, bool is_new = false);
  void RemoveRead(const std::string& value, const Node& reader);
  // Drops removed nodes and initializers from the protobuf, before it is looked at. To drop each at once would take
  // quadratic time.
  void Compact() const;
  void CompactAll() const;
  const Dependents& DependentsOf(const Graph& owner, const std::string& ancestor) const;
  void MarkDependents(Dependents& dependents) const;
  bool ReadsAny(const Node& node, const Dependents& dependents) const;
  void Rejudge(const Node& node);
  Status Sort();
  Status MakeBodies();
  Status MakeBody(const Node& holder, const std::string& attribute, onnx::GraphProto& proto);
  Status MakeFunction(const onnx::FunctionProto& function);
  const onnx::TypeProto* TypeOf(const std::string& value) const;
  onnx::TensorProto& AddInitializer(const std::string& name, int type, size_t elements);  // of rank 1, still empty
  // The declared extent of `value` along `axis`, to edit; null where no such axis is declared.
  onnx::TensorShapeProto::Dimension* MutableExtent(const std::string& value, int64_t axis);
  // For a node that comes: ONNX Runtime refuses two nodes of one name.
  std::string FreshNodeName(const std::string& base);
  const Graph& Main() const { return outer_ == nullptr ? *this : outer_->Main(); }

  std::unique_ptr<onnx::ModelProto> owned_;  // of the main graph and of functions
  onnx::ModelProto* model_ = nullptr;
  onnx::GraphProto* proto_ = nullptr;
  Graph* outer_ = nullptr;
  const Node* holder_ = nullptr;  // of a body: the node of outer_ that has it
  std::filesystem::path folder_;
  std::string place_;
  std::string shadowed_;
  bool is_function_ = false;
  Bodies bodies_;
  std::vector<std::unique_ptr<Graph>> functions_;
  std::shared_ptr<const std::unordered_set<std::string>> model_functions_;  // "domain:name"
  mutable std::unique_ptr<GraphIndex> index_;                               // null: not asked for yet
  mutable std::unique_ptr<Removed> removed_;
  mutable std::vector<std::unique_ptr<Dependents>> dependents_;  // of the main graph: for all its bodies
  // Of the main graph: of the whole model.
  mutable std::unique_ptr<std::unordered_set<std::string>> all_names_;
  mutable std::unique_ptr<std::unordered_set<std::string>> node_names_;
};

// Every name that `node` reads: its inputs, and what its subgraphs capture.
std::vector<std::string> ReadNames(const Node& node);

// com.microsoft's or kvshare's GroupQueryAttention, ai.onnx's or kvshare's Attention.
bool IsAttentionOp(const Node& node);

}  // namespace kvshare::graph
