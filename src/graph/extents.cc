#include "graph/extents.h"

#include <algorithm>
#include <limits>

namespace kvshare::graph {
namespace {

using Extents = std::optional<std::vector<Extent>>;

// Exporters' shape computations have a handful of each; a graph may nest and share so that reading all would never end.
constexpr int kMostNodes = 64;
constexpr size_t kMostElements = 1024;

bool IsFloat(int64_t type) {
  return type == onnx::TensorProto::FLOAT || type == onnx::TensorProto::FLOAT16 ||
         type == onnx::TensorProto::BFLOAT16 || type == onnx::TensorProto::DOUBLE;
}

Extent Number(int64_t number) { return {"", 0, number}; }

class Reader {
 public:
  explicit Reader(const Graph& graph) : graph_(graph) {}

  Extents Read(const std::string& name) {
    const std::string& value = BeforeCast(graph_, name);
    if (const auto ints = graph_.Ints(value)) {
      if (ints->size() > kMostElements) return std::nullopt;
      std::vector<Extent> numbers;
      for (const int64_t number : *ints) numbers.push_back(Number(number));
      return numbers;
    }
    const Node* node = graph_.Producer(value);
    if (node == nullptr || ++read_ > kMostNodes) return std::nullopt;
    if (graph_.IsOnnx(node, "Shape")) return ReadShape(*node);
    if (graph_.IsOnnx(node, "Gather")) return ReadGather(*node);
    if (graph_.IsOnnx(node, "Concat")) return ReadConcat(*node);
    // These keep the elements of a value, and only shapes of at most one axis are read.
    for (const char* op : {"Unsqueeze", "Squeeze", "Reshape"})
      if (graph_.IsOnnx(node, op)) return Read(Input(*node, 0));
    for (const char* op : {"Add", "Sub", "Mul", "Max"})
      if (graph_.IsOnnx(node, op)) return ReadArithmetic(*node);
    return std::nullopt;
  }

 private:
  // Extents [start, end) of the input; its rank must be known where one of the two counts from the end.
  Extents ReadShape(const Node& node) {
    if (Input(node, 0).empty()) return std::nullopt;
    const auto shape = graph_.Shape(Input(node, 0));
    int64_t start = IntAttribute(node, "start");
    const bool to_the_end = FindAttribute(node, "end") == nullptr;
    int64_t end = IntAttribute(node, "end");
    if (shape) {
      const auto rank = static_cast<int64_t>(shape->size());
      start = std::clamp<int64_t>(start < 0 ? start + rank : start, 0, rank);
      end = to_the_end ? rank : std::clamp<int64_t>(end < 0 ? end + rank : end, 0, rank);
    } else if (start < 0 || end < 0 || to_the_end) {
      return std::nullopt;
    }
    if (end - start > static_cast<int64_t>(kMostElements)) return std::nullopt;
    std::vector<Extent> extents;
    for (int64_t axis = start; axis < end; ++axis) extents.push_back(Of(Input(node, 0), axis));
    return extents;
  }

  Extent Of(const std::string& value, int64_t axis) {
    Extent extent{BeforeAnyCast(value), axis, std::nullopt};
    const auto shape = graph_.Shape(value);
    if (shape && axis < static_cast<int64_t>(shape->size()) && (*shape)[static_cast<size_t>(axis)] >= 0)
      extent.number = (*shape)[static_cast<size_t>(axis)];
    return extent;
  }

  // No cast changes an extent.
  const std::string& BeforeAnyCast(const std::string& value) {
    const std::string* name = &graph_.Origin(value);
    for (const Node* node = graph_.Producer(*name); graph_.IsOnnx(node, "Cast"); node = graph_.Producer(*name))
      name = &graph_.Origin(Input(*node, 0));
    return *name;
  }

  Extents ReadGather(const Node& node) {
    const auto indices = graph_.Ints(graph_.Origin(Input(node, 1)));
    if (!indices) return std::nullopt;
    const std::string& data = BeforeCast(graph_, Input(node, 0));
    std::vector<Extent> gathered;
    const Node* shape = graph_.Producer(data);
    const bool whole = graph_.IsOnnx(shape, "Shape") && !Differs(*shape, "start") &&
                       FindAttribute(*shape, "end") == nullptr && !Input(*shape, 0).empty();
    // Counted from the front, an extent needs no known rank.
    if (whole && std::all_of(indices->begin(), indices->end(), [](int64_t index) { return index >= 0; })) {
      for (const int64_t index : *indices) gathered.push_back(Of(Input(*shape, 0), index));
      return gathered;
    }
    const Extents all = Read(data);
    if (!all) return std::nullopt;
    const auto count = static_cast<int64_t>(all->size());
    for (int64_t index : *indices) {
      if (index < 0) index += count;
      if (index < 0 || index >= count) return std::nullopt;
      gathered.push_back((*all)[static_cast<size_t>(index)]);
    }
    return gathered;
  }

  Extents ReadConcat(const Node& node) {
    std::vector<Extent> joined;
    for (const auto& input : node.input()) {
      const Extents part = Read(input);
      if (!part || joined.size() + part->size() > kMostElements) return std::nullopt;
      joined.insert(joined.end(), part->begin(), part->end());
    }
    return joined;
  }

  Extents ReadArithmetic(const Node& node) {
    const Extents left = Read(Input(node, 0));
    const Extents right = Read(Input(node, 1));
    if (node.input_size() != 2 || !left || !right || left->size() != 1 || right->size() != 1) return std::nullopt;
    const auto a = left->front().number;
    const auto b = right->front().number;
    int64_t result = 0;
    if (!a || !b) return Extents({Extent()});
    if (node.op_type() == "Max") return Extents({Number(std::max(*a, *b))});
    const bool overflows = node.op_type() == "Add"   ? __builtin_add_overflow(*a, *b, &result)
                           : node.op_type() == "Sub" ? __builtin_sub_overflow(*a, *b, &result)
                                                     : __builtin_mul_overflow(*a, *b, &result);
    return overflows ? std::nullopt : Extents({Number(result)});
  }

  const Graph& graph_;
  int read_ = 0;
};

}  // namespace

std::optional<std::vector<Extent>> ExtentsOf(const Graph& graph, const std::string& value) {
  return Reader(graph).Read(value);
}

std::optional<Extent> ExtentOf(const Graph& graph, const std::string& value) {
  const auto all = ExtentsOf(graph, value);
  return all && all->size() == 1 ? std::optional(all->front()) : std::nullopt;
}

bool IsExtent(const Graph& graph, const Extent& extent, const std::string& value, int64_t axis) {
  if (extent.of == value && extent.axis == axis) return true;
  const auto shape = graph.Shape(value);
  return shape && axis < static_cast<int64_t>(shape->size()) && (*shape)[static_cast<size_t>(axis)] >= 0 &&
         extent.number == (*shape)[static_cast<size_t>(axis)];
}

std::optional<std::vector<int64_t>> KnownInts(const Graph& graph, const std::string& value) {
  const auto extents = ExtentsOf(graph, value);
  if (!extents) return std::nullopt;
  std::vector<int64_t> numbers;
  for (const Extent& extent : *extents) {
    if (!extent.number) return std::nullopt;
    numbers.push_back(*extent.number);
  }
  return numbers;
}

std::optional<double> KnownScalar(const Graph& graph, const std::string& value) {
  std::string name = graph.Origin(value);
  for (int read = 0; read < kMostNodes; ++read) {
    if (const auto scalar = graph.Scalar(name)) return scalar;
    const Node* node = graph.Producer(name);
    const bool keeps = (graph.IsOnnx(node, "Cast") && IsFloat(IntAttribute(*node, "to"))) ||
                       graph.IsOnnx(node, "Unsqueeze") || graph.IsOnnx(node, "Squeeze") ||
                       graph.IsOnnx(node, "Reshape");
    if (!keeps) return std::nullopt;
    name = graph.Origin(Input(*node, 0));
  }
  return std::nullopt;
}

std::optional<LastRows> LastRowsOf(const Graph& graph, const std::string& value) {
  const Node* slice = graph.Producer(value);
  if (!graph.IsOnnx(slice, "Slice")) return std::nullopt;
  const auto begin = KnownInts(graph, Input(*slice, 1));
  const auto end = KnownInts(graph, Input(*slice, 2));
  const auto axes = KnownInts(graph, Input(*slice, 3));
  const bool by_one = Input(*slice, 4).empty() || KnownInts(graph, Input(*slice, 4)) == std::vector<int64_t>{1};
  if (!begin || !end || !axes || begin->size() != 1 || end->size() != 1 || axes->size() != 1 || !by_one)
    return std::nullopt;
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (begin->front() >= 0 || begin->front() < -kMost || end->front() < kMost) return std::nullopt;
  int64_t axis = axes->front();
  if (axis < 0) {
    const auto shape = graph.Shape(Input(*slice, 0));
    if (!shape) return std::nullopt;
    axis += static_cast<int64_t>(shape->size());
  }
  return LastRows{Input(*slice, 0), axis, -begin->front()};
}

const std::string& BeforeCast(const Graph& graph, const std::string& value) {
  const std::string* name = &graph.Origin(value);
  for (const Node* node = graph.Producer(*name); graph.IsOnnx(node, "Cast"); node = graph.Producer(*name)) {
    const int64_t to = IntAttribute(*node, "to");
    if (to != onnx::TensorProto::INT32 && to != onnx::TensorProto::INT64) break;
    name = &graph.Origin(Input(*node, 0));
  }
  return *name;
}

}  // namespace kvshare::graph
