// A shared layer appends nothing, so nobody reads its presents; named, ONNX Runtime copies the whole cache into them.
//
//  before   out, present_key, present_value = GroupQueryAttention(...)        after   out = GroupQueryAttention(...)
#include "graph/rules/rule.h"

namespace kvshare::graph {
namespace {

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  if (!layer.IsShared() || !layer.IsGqa()) return Outcome::NoMatch();
  Graph& graph = rewriting.GraphOf(layer);
  const Node& node = *layer.node;
  const std::string key = Output(node, 1);
  const std::string value = Output(node, 2);
  if (key.empty() && value.empty()) return Outcome::NoMatch();
  if (rewriting.wanted.Has(Feature::kToEmptyKey) && layer.IsKvshare()) return Outcome::NoMatch();
  if (!layer.trouble.ok()) return Outcome::Declined(layer.trouble);
  if (rewriting.wanted.Has(Feature::kToExternalKey) && !layer.IsKvshare())
    return Outcome::Declined(
        Because(DeclineCode::kPresentsNeeded,
                "is still com.microsoft's, which ONNX Runtime 1.27 to 1.30 crash on without presents"));
  if (rewriting.wanted.Has(Feature::kNamedPresents))
    return Outcome::Declined(
        Because(DeclineCode::kPresentsNeeded,
                "presents stay named (and copied) for option 'min_ort' = '{}': ONNX Runtime 1.27 to 1.30 crash without",
                rewriting.options.min_ort));
  for (const auto& present : {key, value})
    if (!present.empty() && graph.IsRead(present))
      return Outcome::Declined(Because(DeclineCode::kOutputIsRead, "present '{}' is read", present));
  if (!Output(node, 3).empty()) return Outcome::Declined(Because(DeclineCode::kOutputIsRead, "has output_qk"));
  graph.SetOutputs(node, {node.output(0)});
  return Outcome::Applied();
}

}  // namespace

void RunUnnamePresents(Rewriting& rewriting) { ForEachLayer(rewriting, kUnnamePresentsRule, Apply); }

}  // namespace kvshare::graph
