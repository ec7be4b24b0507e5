// A model's main graph as something to walk and edit: nodes in execution order, values by name.
//
// Node pointers stay valid until the node is removed. Indices over names are rebuilt when next asked for after an edit.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "graph/attributes.h"
#include "kvshare/status.h"
#include "onnx/onnx-ml.pb.h"

namespace kvshare::graph {

class Graph {
 public:
  // Takes `model`; `folder` is where its external data lies. Nodes may come in any order and are sorted, keeping the
  // given order where it is possible. kInvalidInput: a value produced twice, or by nothing, or out of itself.
  static Result<Graph> Make(onnx::ModelProto model, std::filesystem::path folder);

  // The model with its nodes put back.
  onnx::ModelProto Release() &&;
  // A copy of it, for comparison and tests.
  onnx::ModelProto Copy() const;

  std::vector<Node*> nodes() const;
  const onnx::ModelProto& model() const { return model_; }

  // Null: a graph input, an initializer, or absent.
  Node* Producer(const std::string& value) const;
  // Each node that reads `value`, once, those whose subgraphs capture it included.
  const std::vector<Node*>& Consumers(const std::string& value) const;
  bool IsInput(const std::string& value) const;
  bool IsOutput(const std::string& value) const;
  bool IsRead(const std::string& value) const { return IsOutput(value) || !Consumers(value).empty(); }
  // Does `value` depend on `ancestor`?
  bool DependsOn(const std::string& value, const std::string& ancestor) const;

  // Constants: initializers and Constant nodes, inline or external. Nothing where `value` is not a small one.
  std::optional<std::vector<int64_t>> Ints(const std::string& value) const;
  std::optional<double> Scalar(const std::string& value) const;  // of any numeric type
  // The tensor behind a constant, null if `value` is none, or is not given as a tensor.
  const onnx::TensorProto* ConstantTensor(const std::string& value) const;

  // From graph inputs, outputs, value_info and initializers; 0 and nothing where unknown.
  int ElementType(const std::string& value) const;
  std::optional<std::vector<int64_t>> Shape(const std::string& value) const;  // -1: not fixed

  // A node's op is a function of the model itself, whatever its name suggests.
  bool IsModelFunction(const Node& node) const;

  // New nodes go right before `where`; their outputs should be FreshName()s.
  Node& InsertBefore(const Node& where, const std::string& op_type, const std::vector<std::string>& inputs,
                     const std::vector<std::string>& outputs);
  std::string FreshName(const std::string& base) const;
  void AddInts(const std::string& name, const std::vector<int64_t>& values);
  void Remove(Node* node);
  void RemoveInitializer(const std::string& name);
  void RemoveInput(const std::string& name);
  // Drops value_info of values that no longer exist.
  void TrimValueInfo();
  void RequireImport(const std::string& domain, int64_t version);
  // To be called after editing a node's inputs or outputs in place.
  void Touch() { index_.reset(); }

 private:
  struct Index {
    std::unordered_map<std::string, Node*> producer;
    std::unordered_map<std::string, std::vector<Node*>> consumers;
    std::unordered_set<std::string> inputs;
    std::unordered_set<std::string> outputs;
    std::unordered_map<std::string, const onnx::TensorProto*> initializers;
    std::unordered_map<std::string, const onnx::TypeProto*> types;
  };
  const Index& index() const;
  Status Sort();

  onnx::ModelProto model_;  // its graph's nodes live in nodes_
  std::filesystem::path folder_;
  std::vector<std::unique_ptr<Node>> nodes_;
  mutable std::shared_ptr<const Index> index_;
};

// Every name that `node` reads: its inputs, and what its subgraphs capture.
std::vector<std::string> ReadNames(const Node& node);

}  // namespace kvshare::graph
