#include "graph/dependents.h"

#include <algorithm>

namespace kvshare::graph {

bool Graph::DependsOn(const std::string& value, const std::string& ancestor) const {
  if (value == ancestor) return true;
  const Graph* owner = OwnerOf(ancestor);
  const Graph* of_value = OwnerOf(value);
  return owner != nullptr && of_value != nullptr && DependentsOf(*owner, ancestor).Has(of_value, value);
}

const Graph::Dependents& Graph::DependentsOf(const Graph& owner, const std::string& ancestor) const {
  auto& known = Main().dependents_;
  const auto it = std::find_if(known.begin(), known.end(), [&](const auto& dependents) {
    return dependents->owner == &owner && dependents->ancestor == ancestor;
  });
  if (it != known.end()) return **it;
  known.push_back(std::make_unique<Dependents>(Dependents{&owner, ancestor}));
  owner.MarkDependents(*known.back());
  return *known.back();
}

// In execution order: what a node reads is judged before it is.
void Graph::MarkDependents(Dependents& dependents) const {
  for (const Node* node : nodes()) {
    if (ReadsAny(*node, dependents))
      for (const auto& output : node->output())
        if (!output.empty()) dependents.values[this].insert(output);
    for (const Graph* body : BodiesOf(*node)) {
      const auto& inputs = body->proto_->input();  // Loop and Scan give their inputs to the body's in the same order
      for (int i = 0; i < inputs.size(); ++i) {
        const std::string& given = Input(*node, i);
        if (dependents.Has(OwnerOf(given), given)) dependents.values[body].insert(inputs[i].name());
      }
      body->MarkDependents(dependents);
    }
  }
}

bool Graph::ReadsAny(const Node& node, const Dependents& dependents) const {
  const auto reads = [&](const std::string& name) {
    return !name.empty() && dependents.HasAnywhere(name) && dependents.Has(OwnerOf(name), name);
  };
  if (BodiesOf(node).empty()) return std::any_of(node.input().begin(), node.input().end(), reads);
  const auto names = ReadNames(node);
  return std::any_of(names.begin(), names.end(), reads);
}

// After an edit of `node`: what is known of dependence stays where it stays true, and is forgotten where it does not.
void Graph::Rejudge(const Node& node) {
  auto& known = Main().dependents_;
  std::erase_if(known, [&](const auto& dependents) {
    const bool reads = ReadsAny(node, *dependents);
    return std::any_of(node.output().begin(), node.output().end(), [&](const std::string& output) {
      if (output.empty() || reads == dependents->Has(this, output)) return false;
      if (!reads || IsRead(output)) return true;
      dependents->values[this].insert(output);
      return false;
    });
  });
  if (outer_ != nullptr && !known.empty()) outer_->Rejudge(*holder_);
}

}  // namespace kvshare::graph
