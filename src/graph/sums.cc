#include "graph/sums.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>

#include "graph/extents.h"

namespace kvshare::graph {
namespace {

// Exporters nest a few sums and joins; a graph may share them so that reading all would never end.
constexpr int kDeepest = 12;
constexpr int kMostNodes = 64;

void Put(Sum& sum, const std::string& name, int64_t times) {
  const auto [at, added] = sum.terms.try_emplace(name, times);
  if (added) return;
  at->second += times;
  if (at->second == 0) sum.terms.erase(at);
}

constexpr std::string_view kExcess = "Max(0, ";

// Is `name` how far `sum` exceeds a number?
bool IsExcessOf(std::string_view name, const Sum& sum) {
  const std::string begin = fmt::format("{}{} - ", kExcess, TextOf(sum));
  return sum.number == 0 && name.starts_with(begin) && name.ends_with(')') &&
         std::all_of(name.begin() + static_cast<std::ptrdiff_t>(begin.size()), name.end() - 1,
                     [](unsigned char c) { return std::isdigit(c) != 0; });
}

// max(0, sum).
Sum ExcessOf(const Sum& sum) {
  if (IsNeverNegative(sum)) return sum;
  if (sum.terms.empty()) return {};
  // What is left of a number of rows, once it is cut, is no less than none.
  for (const auto& [name, times] : sum.terms) {
    if (times != -1) continue;
    const Sum whole = Add(sum, {0, {{name, 1}}});
    if (IsNeverNegative(whole) && IsExcessOf(name, whole)) return sum;
  }
  return {0, {{fmt::format("{}{})", kExcess, TextOf(sum)), 1}}};
}

// "past + seq" as the exporter of PyTorch writes the name of an extent; nothing where it is another expression.
std::optional<Sum> ParseSymbol(const std::string& scope, std::string_view text) {
  Sum sum;
  while (!text.empty()) {
    const size_t plus = text.find(" + ");
    const std::string_view part = text.substr(0, plus);
    text.remove_prefix(plus == std::string_view::npos ? text.size() : plus + 3);
    int64_t number = 0;
    const auto read = std::from_chars(part.data(), part.data() + part.size(), number);
    const bool is_number = read.ec == std::errc() && read.ptr == part.data() + part.size();
    const bool is_name = !part.empty() && std::ranges::all_of(part, [](unsigned char c) {
      return std::isalnum(c) != 0 || c == '_' || c == '.';
    });
    if (is_number) {
      sum.number += number;
    } else if (is_name) {
      Put(sum, fmt::format("{}{}", scope, part), 1);
    } else {
      return std::nullopt;
    }
  }
  return sum;
}

// The axis of Concat or Split, counted from the front; `beside` has its rank as its output has.
std::optional<int64_t> AxisOf(const Graph& graph, const Node& node, std::initializer_list<std::string> beside) {
  const int64_t axis = IntAttribute(node, "axis");
  if (axis >= 0) return axis;
  for (const auto& value : beside)
    if (const auto shape = graph.Shape(value)) return axis + static_cast<int64_t>(shape->size());
  return std::nullopt;
}

// The axis of input 0 whose extent the node hands on as that of its output along `axis`.
std::optional<int64_t> AxisBefore(const Graph& graph, const Node& node, int64_t axis) {
  const auto at = static_cast<size_t>(axis);
  if (graph.IsOnnx(&node, "RotaryEmbedding") || graph.IsOnnx(&node, "RMSNormalization")) return axis;
  if (graph.IsOnnx(&node, "Transpose")) {
    const auto perm = IntsAttribute(node, "perm");
    return perm && at < perm->size() && (*perm)[at] >= 0 ? std::optional((*perm)[at]) : std::nullopt;
  }
  if (graph.IsOnnx(&node, "Split")) {
    const auto split = AxisOf(graph, node, {node.output(0), Input(node, 0)});
    return split && *split != axis ? std::optional(axis) : std::nullopt;
  }
  if (!graph.IsOnnx(&node, "Reshape") || Differs(node, "allowzero")) return std::nullopt;
  const auto shape = graph.Ints(graph.Origin(Input(node, 1)));
  return shape && at < shape->size() && (*shape)[at] == 0 ? std::optional(axis) : std::nullopt;
}

class Reader {
 public:
  explicit Reader(const Graph& graph) : graph_(graph) {}

  Sum Extent(const std::string& name, int64_t axis, int depth = 0) {
    const std::string& value = graph_.Origin(name);
    const auto shape = graph_.Shape(value);
    const bool within = shape && axis < static_cast<int64_t>(shape->size());
    if (within && (*shape)[static_cast<size_t>(axis)] >= 0) return {(*shape)[static_cast<size_t>(axis)]};
    const Node* node = graph_.Producer(value);
    if (node == nullptr || depth >= kDeepest) return Named(value, axis);
    const auto last = HasPlainName(value, axis) ? std::nullopt : LastRowsOf(graph_, value);
    if (last && ++read_ <= kMostNodes) {
      Sum whole = Extent(last->value, axis, depth + 1);
      if (last->axis != axis) return whole;
      return Subtract(whole, ExcessOf(Subtract(whole, Sum{last->rows})));
    }
    if (graph_.IsOnnx(node, "Concat") && ++read_ <= kMostNodes)
      if (const auto joined = AxisOf(graph_, *node, {node->output(0), Input(*node, 0), Input(*node, 1)}))
        return OfConcat(*node, *joined, axis, depth);
    if (const auto from = AxisBefore(graph_, *node, axis); from && graph_.ExtentName(value, axis).empty())
      return Extent(Input(*node, 0), *from, depth + 1);
    return Named(value, axis);
  }

  std::optional<Sum> Element(const std::string& name, int depth = 0) {
    if (depth > kDeepest || ++read_ > kMostNodes) return std::nullopt;
    const std::string& value = BeforeCast(graph_, name);
    const Node* node = graph_.Producer(value);
    for (const char* op : {"Squeeze", "Unsqueeze", "Reshape"})
      if (graph_.IsOnnx(node, op)) return Element(Input(*node, 0), depth + 1);
    if (graph_.IsOnnx(node, "Add") || graph_.IsOnnx(node, "Sub")) {
      const auto left = Element(Input(*node, 0), depth + 1);
      const auto right = Element(Input(*node, 1), depth + 1);
      if (!left || !right) return std::nullopt;
      return node->op_type() == "Add" ? Add(*left, *right) : Subtract(*left, *right);
    }
    if (graph_.IsOnnx(node, "Mul") || graph_.IsOnnx(node, "Max"))
      if (const auto sum = Combined(*node, depth)) return sum;
    const auto extent = ExtentOf(graph_, value);
    if (!extent || !extent->IsKnown()) return std::nullopt;
    return extent->of.empty() ? Sum{*extent->number} : Extent(extent->of, extent->axis);
  }

  std::optional<std::vector<Sum>> Elements(const std::string& name, int depth = 0) {
    if (depth > kDeepest || ++read_ > kMostNodes) return std::nullopt;
    const std::string& value = BeforeCast(graph_, name);
    const Node* node = graph_.Producer(value);
    std::vector<Sum> sums;
    if (graph_.IsOnnx(node, "Concat")) {
      for (const auto& input : node->input()) {
        const auto part = Elements(input, depth + 1);
        if (!part) return std::nullopt;
        sums.insert(sums.end(), part->begin(), part->end());
      }
      return sums;
    }
    if (const auto extents = ExtentsOf(graph_, value);
        extents && std::ranges::all_of(*extents, [](const auto& extent) { return extent.IsKnown(); })) {
      for (const auto& extent : *extents)
        sums.push_back(extent.of.empty() ? Sum{*extent.number} : Extent(extent.of, extent.axis));
      return sums;
    }
    const auto only = Element(value);
    return only ? std::optional(std::vector<Sum>{*only}) : std::nullopt;
  }

 private:
  // -1 times a number, or the larger of 0 and a number.
  std::optional<Sum> Combined(const Node& node, int depth) {
    if (node.input_size() != 2) return std::nullopt;
    for (const int fixed : {0, 1}) {
      const auto number = KnownInts(graph_, node.input(fixed));
      if (!number || number->size() != 1) continue;
      const bool is_excess = node.op_type() == "Max" && number->front() == 0;
      const bool is_turned = node.op_type() == "Mul" && number->front() == -1;
      if (!is_excess && !is_turned) continue;
      const auto other = Element(node.input(1 - fixed), depth + 1);
      if (!other) return std::nullopt;
      return is_excess ? ExcessOf(*other) : Subtract({}, *other);
    }
    return std::nullopt;
  }

  // "past", and not the exporter's "Max(0, past - 4)", which other nodes compute as well.
  bool HasPlainName(const std::string& value, int64_t axis) const {
    const std::string symbol = graph_.ExtentName(value, axis);
    return !symbol.empty() && ParseSymbol("", symbol);
  }

  Sum Named(const std::string& value, int64_t axis) {
    const Graph* owner = graph_.OwnerOf(value);
    const std::string scope = owner == nullptr || owner->place().empty() ? "" : owner->place() + ": ";
    if (const std::string symbol = graph_.ExtentName(value, axis); !symbol.empty()) {
      const auto sum = ParseSymbol(scope, symbol);
      return sum ? *sum : Sum{0, {{scope + symbol, 1}}};
    }
    return Sum{0, {{fmt::format("{}{}[{}]", scope, value, axis), 1}}};
  }

  Sum OfConcat(const Node& concat, int64_t joined, int64_t axis, int depth) {
    // All inputs have the same extent along axes that are not joined.
    if (axis != joined) {
      const Sum own = Named(concat.output(0), axis);
      const bool has_name = !graph_.ExtentName(concat.output(0), axis).empty();
      return has_name || concat.input_size() == 0 ? own : Extent(concat.input(0), axis, depth + 1);
    }
    Sum all;
    for (const auto& input : concat.input()) all = Add(std::move(all), Extent(input, axis, depth + 1));
    return all;
  }

  const Graph& graph_;
  int read_ = 0;
};

}  // namespace

bool IsNeverNegative(const Sum& sum) {
  return sum.number >= 0 && std::ranges::all_of(sum.terms, [](const auto& term) { return term.second > 0; });
}

bool IsExcess(const Sum& sum) {
  return sum.number == 0 && std::ranges::all_of(sum.terms, [](const auto& term) {
           return term.second > 0 && term.first.starts_with(kExcess) && term.first.ends_with(')');
         });
}

Sum Add(Sum left, const Sum& right) {
  left.number += right.number;
  for (const auto& [name, times] : right.terms) Put(left, name, times);
  return left;
}

Sum Subtract(Sum left, const Sum& right) {
  left.number -= right.number;
  for (const auto& [name, times] : right.terms) Put(left, name, -times);
  return left;
}

std::string TextOf(const Sum& sum) {
  std::string text;
  const auto put = [&](int64_t times, const std::string& what) {
    text += text.empty() ? (times < 0 ? "-" : "") : (times < 0 ? " - " : " + ");
    text += what;
  };
  for (const auto& [name, times] : sum.terms)
    put(times, times == 1 || times == -1 ? name : fmt::format("{} {}", times < 0 ? -times : times, name));
  if (sum.number != 0 || text.empty()) put(sum.number, fmt::format("{}", sum.number < 0 ? -sum.number : sum.number));
  return text;
}

Sum SumOfExtent(const Graph& graph, const std::string& value, int64_t axis) {
  return Reader(graph).Extent(value, axis);
}

std::optional<Sum> SumOf(const Graph& graph, const std::string& value) { return Reader(graph).Element(value); }

std::optional<std::vector<Sum>> SumsOf(const Graph& graph, const std::string& value) {
  return Reader(graph).Elements(value);
}

}  // namespace kvshare::graph
