#include "graph/masks.h"

#include <unordered_set>

#include "graph/masks/dialect.h"

namespace kvshare::graph {

Matched<MaskMeaning> ReadMask(const Graph& graph, const std::string& mask) {
  std::vector<Decline> reasons;
  for (const Dialect& dialect : AllDialects()) {
    auto meaning = dialect.read(graph, mask);
    if (meaning.ok()) return meaning;
    reasons.push_back(meaning.status());
  }
  // Blocks whose tokens see each other, as those of one image do.
  for (const Node* node : MaskNodes(graph, mask))
    if (graph.IsOnnx(node, "Or"))
      return Because(DeclineCode::kMaskUnknown,
                     "mask: {} lets queries see more than causality and a window do; it is needed whole",
                     Describe(*node));
  for (size_t i = 0; i < reasons.size(); ++i)
    if (AllDialects()[i].is_like(graph, mask)) return reasons[i];
  return reasons.front();
}

std::vector<const Node*> MaskNodes(const Graph& graph, const std::string& mask) {
  std::vector<const Node*> found;
  std::unordered_set<const Node*> seen;
  std::vector<std::string> open = {mask};
  while (!open.empty()) {
    const std::string value = std::move(open.back());
    open.pop_back();
    const Node* node = graph.Producer(value);
    if (node == nullptr || node->op_type() == "Shape" || node->op_type() == "Constant") continue;
    if (!seen.insert(node).second) continue;
    found.push_back(node);
    for (auto& name : ReadNames(*node)) open.push_back(std::move(name));
  }
  return found;
}

}  // namespace kvshare::graph
