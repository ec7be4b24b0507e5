// Layers that own their K/V keep their inputs, outputs and attributes and run in kvshare.
//
//  before   com.microsoft::GroupQueryAttention(...)        after   kvshare::GroupQueryAttention(...)
#include <algorithm>

#include "graph/match/gqa.h"
#include "graph/rules/rule.h"

namespace kvshare::graph {
namespace {

constexpr int kLastInput = 16;  // of ONNX Runtime 1.32's schema

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  if (layer.IsShared() || !layer.IsGqa() || layer.IsKvshare()) return Outcome::NoMatch();
  const Node& node = *layer.node;
  const auto borrows = [](const Layer& l) { return l.IsShared(); };
  const auto converted = [](const Layer& l) { return l.IsShared() && l.IsKvshare(); };
  const auto& layers = rewriting.layers;
  if (std::any_of(layers.begin(), layers.end(), borrows) && std::none_of(layers.begin(), layers.end(), converted))
    return Outcome::Declined(
        Because(DeclineCode::kNothingShared,
                "no shared layer of this model could be converted, so its own layers stay as they are"));
  if (Decline odd = CheckGqaNode(layer); !odd.ok()) return Outcome::Declined(std::move(odd));
  if (node.input_size() > kLastInput + 1)
    return Outcome::Declined(
        Because(DeclineCode::kInputsUnknown, "has {} inputs; kvshare knows {}", node.input_size(), kLastInput + 1));
  rewriting.GraphOf(layer).SetOp(node, kKvshare, node.op_type());
  rewriting.graph.RequireImport(kKvshare, 1);
  return Outcome::Applied();
}

}  // namespace

void RunOwnLayers(Rewriting& rewriting) { ForEachLayer(rewriting, kOwnLayersRule, Apply); }

}  // namespace kvshare::graph
