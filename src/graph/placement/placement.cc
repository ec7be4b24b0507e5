#include "graph/placement/placement.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "graph/layers.h"
#include "graph/masks.h"
#include "graph/placement/ort_kernels.h"

namespace kvshare::graph {
namespace {

using Values = std::unordered_set<std::string>;

// One graph's nodes on their providers; bodies are graphs of their own, as in ONNX Runtime.
class Placer {
 public:
  Placer(const Graph& graph, int release) : graph_(graph), release_(release), nodes_(graph.nodes()) {
    for (const Node* node : nodes_) Judge(*node);
    SendShapesToCpu();
  }

  Provider ProviderOf(const Node& node) const { return facts_.at(&node).provider; }
  const std::string& WhyOf(const Node& node) const { return facts_.at(&node).why; }
  bool IsFolded(const Node& node) const { return !facts_.contains(&node); }
  const std::vector<const Node*>& nodes() const { return nodes_; }

  // Values for which a Memcpy node comes: made on one side, or fed to the model, and read on the other.
  std::vector<std::string> Copies() const;

 private:
  void Judge(const Node& node);
  void SendShapesToCpu();
  bool BelongsToCpu(const Node& node, const Values& on_cpu) const;
  bool IsConstant(const std::string& value) const;
  bool IsSmall(const std::string& value) const;
  std::string TypeOf(const std::string& value) const;
  int64_t OpsetOf(const Node& node) const;

  const Graph& graph_;
  int release_;
  std::vector<const Node*> nodes_;
  std::unordered_map<const Node*, KernelFacts> facts_;  // of all nodes but those that are folded
  std::unordered_map<std::string, std::string> types_;
  Values folded_;
};

bool Placer::IsConstant(const std::string& value) const {
  return folded_.contains(value) ||
         (graph_.Producer(value) == nullptr && !graph_.IsInput(value) && graph_.ConstantTensor(value) != nullptr);
}

// A constant of a hundred elements or fewer, which ONNX Runtime lets both sides have.
bool Placer::IsSmall(const std::string& value) const {
  constexpr int64_t kSmall = 100;
  const onnx::TensorProto* const tensor = graph_.ConstantTensor(value);
  if (tensor == nullptr) return folded_.contains(value);
  int64_t elements = 1;
  for (const int64_t extent : tensor->dims()) elements *= extent;
  return elements <= kSmall;
}

std::string Placer::TypeOf(const std::string& value) const {
  if (value.empty()) return "";
  if (const auto found = types_.find(value); found != types_.end() && !found->second.empty()) return found->second;
  if (const auto* tensor = graph_.ConstantTensor(value)) return std::string(TypeName(tensor->data_type()));
  return std::string(TypeName(graph_.ElementType(value)));
}

int64_t Placer::OpsetOf(const Node& node) const {
  for (const auto& import : graph_.model().opset_import())
    if (CanonicalDomain(import.domain()) == DomainOf(node)) return import.version();
  return 1;
}

void Placer::Judge(const Node& node) {
  const bool folds = std::ranges::all_of(node.input(), [&](const auto& in) { return in.empty() || IsConstant(in); }) &&
                     (node.input_size() > 0 || node.op_type() == "Constant");
  std::vector<std::string> types;
  for (const std::string& input : node.input()) types.push_back(TypeOf(input));
  KernelFacts facts = LookUpKernel(node, OpsetOf(node), types, release_);
  if (graph_.IsModelFunction(node)) facts = {Provider::kUnknown, "a function of the model", facts.output_types, {}, {}};
  for (int output = 0; output < node.output_size(); ++output)
    types_.try_emplace(node.output(output), facts.output_types[static_cast<size_t>(output)]);
  if (folds)
    folded_.insert(node.output().begin(), node.output().end());
  else
    facts_.emplace(&node, std::move(facts));
}

bool Placer::BelongsToCpu(const Node& node, const Values& on_cpu) const {
  static const std::set<std::string> kOfModels = {"f16", "bf16", "f8e4m3fn", "f8e5m2"};
  const auto& host = facts_.at(&node).host_inputs;
  for (int i = 0; i < node.input_size(); ++i) {
    const std::string& input = node.input(i);
    if (kOfModels.contains(TypeOf(input))) return false;
    if (input.empty() || IsSmall(input) || graph_.IsInput(input)) continue;
    if (!on_cpu.contains(input) || host.contains(i)) return false;
  }
  return true;
}

// What depends on values in the host's memory alone is cheaper there: the arithmetic of shapes. In execution order,
// so one pass meets each node after all that it may follow.
void Placer::SendShapesToCpu() {
  Values on_cpu;
  for (const Node* node : nodes_) {
    if (IsFolded(*node)) continue;
    KernelFacts& facts = facts_.at(node);
    const bool follows = std::ranges::any_of(node->input(), [&](const auto& in) { return on_cpu.contains(in); });
    if (facts.provider == Provider::kCuda) {
      for (const int output : facts.host_outputs)
        if (output < node->output_size()) on_cpu.insert(node->output(output));
      if (!follows || !BelongsToCpu(*node, on_cpu)) continue;
      facts.provider = Provider::kCpu;
      facts.why = "arithmetic of shapes";
    } else if (!follows) {
      continue;
    }
    on_cpu.insert(node->output().begin(), node->output().end());
  }
}

std::vector<std::string> Placer::Copies() const {
  std::set<std::string> host_reads, host_makes, cuda_reads, cuda_makes;
  for (const auto& [node, facts] : facts_) {
    if (facts.provider == Provider::kUnknown) continue;
    const bool cuda = facts.provider == Provider::kCuda;
    for (int i = 0; i < node->input_size(); ++i)
      if (!node->input(i).empty() && !IsConstant(node->input(i)))
        (cuda && !facts.host_inputs.contains(i) ? cuda_reads : host_reads).insert(node->input(i));
    for (int i = 0; i < node->output_size(); ++i)
      if (!node->output(i).empty())
        (cuda && !facts.host_outputs.contains(i) ? cuda_makes : host_makes).insert(node->output(i));
  }
  std::vector<std::string> copies;
  for (const std::string& value : cuda_reads)
    if (host_makes.contains(value) || (graph_.Producer(value) == nullptr && host_reads.contains(value)))
      copies.push_back(value);
  for (const std::string& value : cuda_makes)
    if (host_reads.contains(value)) copies.push_back(value);
  return copies;
}

// "GroupQueryAttention on the CPU: <why>" and the nodes of which it is true.
using Reasons = std::map<std::string, std::vector<const Node*>>;

std::unordered_set<const Node*> AttentionAndMasks(const Graph& graph) {
  std::unordered_set<const Node*> nodes;
  for (const Layer& layer : FindLayers(graph)) {
    nodes.insert(layer.node);
    const std::string& mask = MaskValueOf(layer);
    if (mask.empty()) continue;
    const std::vector<const Node*> makers = MaskNodes(*layer.graph, mask);
    nodes.insert(makers.begin(), makers.end());
  }
  return nodes;
}

bool Touches(const Graph& graph, const std::string& value, const std::unordered_set<const Node*>& nodes) {
  const auto& readers = graph.Consumers(value);
  return nodes.contains(graph.Producer(value)) ||
         std::ranges::any_of(readers, [&](const Node* reader) { return nodes.contains(reader); });
}

void Place(const Graph& graph, int release, const std::unordered_set<const Node*>& around, CudaPlacement& placement,
           Reasons& reasons) {
  const Placer placer(graph, release);
  for (const Node* node : placer.nodes()) {
    for (const Graph* body : graph.BodiesOf(*node)) Place(*body, release, around, placement, reasons);
    if (placer.IsFolded(*node)) continue;
    const Provider provider = placer.ProviderOf(*node);
    (provider == Provider::kCuda  ? placement.cuda_nodes
     : provider == Provider::kCpu ? placement.cpu_nodes
                                  : placement.unknown_nodes)++;
    if (provider == Provider::kCuda) continue;
    if (provider == Provider::kCpu && around.contains(node)) ++placement.attention_on_cpu;
    reasons[fmt::format("{} {}: {}", node->op_type(), provider == Provider::kCpu ? "on the CPU" : "not known",
                        placer.WhyOf(*node))]
        .push_back(node);
  }
  for (const std::string& value : placer.Copies()) {
    ++placement.copies;
    if (Touches(graph, value, around)) placement.attention_copies.push_back(value);
  }
}

}  // namespace

Result<CudaPlacement> PlaceOnCuda(const Graph& graph, const std::string& release) {
  const auto number = ReleaseOf(release);
  if (!number)
    return Status::InvalidInput(fmt::format(
        "option 'cuda' = '{}': which CUDA kernels that release has is not known; needs {}", release, KnownReleases()));
  CudaPlacement placement;
  placement.release = fmt::format("1.{}", *number);
  Reasons reasons;
  Place(graph, *number, AttentionAndMasks(graph), placement, reasons);
  for (const auto& [reason, nodes] : reasons)
    placement.notes.push_back(
        fmt::format("{} x {} ({}{})", nodes.size(), reason, NameOf(*nodes.front()), nodes.size() > 1 ? ", ..." : ""));
  if (const std::string_view date = UnfinishedSourcesOf(*number); !date.empty())
    placement.notes.push_back(
        fmt::format("the table of {} is of sources of {}: CUDA kernels that the release got later are missing",
                    placement.release, date));
  return placement;
}

}  // namespace kvshare::graph
