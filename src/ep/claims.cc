#include "ep/claims.h"

#include <fmt/format.h>

#include "graph/layers.h"

namespace kvshare::ep {
namespace {

using graph::Input;
using graph::Layer;
using graph::Output;

// The layers whose is_causal exporters mean by position: top left, a decoded token would see one key of the whole
// cache.
bool BorrowsCausally(const Layer& layer) {
  return !layer.IsGqa() && layer.IsShared() && !layer.key.empty() && layer.source >= 0 &&
         graph::IntAttribute(*layer.node, "is_causal") == 1 && Input(*layer.node, 4).empty() &&
         Input(*layer.node, 6).empty();
}

bool PresentsUnread(const Layer& layer) {
  const std::string& key = Output(*layer.node, 1);
  const std::string& value = Output(*layer.node, 2);
  const auto unread = [&](const std::string& present) { return present.empty() || !layer.graph->IsRead(present); };
  return !(key.empty() && value.empty()) && unread(key) && unread(value);
}

// Two bodies of one node may have nodes whose outputs have one name.
void AddPlan(Claims& claims, const Layer& layer, const Plan& plan) {
  const auto [at, added] = claims.plans.try_emplace(Output(*layer.node, 0), plan);
  if (added || at->second == plan) return;
  at->second = Plan{};
  claims.reasons.push_back(
      fmt::format("{}: two bodies have a value '{}', which would mean different things; taken as ONNX says",
                  graph::Describe(*layer.node), Output(*layer.node, 0)));
}

}  // namespace

Claims FindClaims(const graph::Graph& graph, Alignment alignment) {
  Claims claims;
  for (const Layer& layer : graph::FindLayers(graph)) {
    if (layer.graph->IsFunction() || layer.IsKvshare()) continue;
    Plan plan;
    plan.hides_presents = PresentsUnread(layer);
    const bool repairs = alignment == Alignment::kAuto && BorrowsCausally(layer);
    plan.lower_right = repairs || alignment == Alignment::kLowerRight;
    if (repairs) claims.repaired.push_back(graph::Describe(*layer.node));
    AddPlan(claims, layer, plan);
  }
  return claims;
}

}  // namespace kvshare::ep
