#include "graph/match/repeat.h"

#include "graph/extents.h"
#include "graph/forms/facts.h"
#include "graph/sums.h"

namespace kvshare::graph {
namespace {

constexpr size_t kRank = 4;  // of BNSH

// Unsqueeze -> Expand [B, Hkv, G, T, D] lengthens nothing but the new axis.
Decline CheckExpand(const Graph& graph, const Trace& trace) {
  const Node& expand = *trace.steps[1];
  const auto wide = SumsOf(graph, Input(expand, 1));
  if (!wide || wide->size() != kRank + 1)
    return Because(DeclineCode::kKeyIsExpanded, "{} has a shape that is not known", Describe(expand));
  if (!SumOfExtent(graph, trace.value, 1).Is(trace.heads))
    return Because(DeclineCode::kKeyIsExpanded, "'{}' is not known to have {} heads before {} repeats them",
                   trace.value, trace.heads, Describe(expand));
  for (const size_t axis : {0U, 1U, 3U, 4U}) {
    const size_t from = axis < 2 ? axis : axis - 1;
    const Sum extent = SumOfExtent(graph, trace.value, static_cast<int64_t>(from));
    if (!(*wide)[axis].Is(1) && (*wide)[axis] != extent)
      return Because(DeclineCode::kKeyIsExpanded, "{} makes an extent {} of '{}' into {}; needs it as it is",
                     Describe(expand), TextOf(extent), trace.value, TextOf((*wide)[axis]));
  }
  return {};
}

// Reshape to [B, Hkv * G, T, D], of which one extent may be -1, and the first 0.
Decline CheckReshape(const Graph& graph, const Trace& trace) {
  const Node& reshape = *trace.steps[0];
  const auto flat = SumsOf(graph, Input(reshape, 1));
  bool fits = flat && flat->size() == kRank;
  bool inferred = false;
  for (size_t axis = 0; fits && axis < kRank; ++axis) {
    const Sum& to = (*flat)[axis];
    if (axis == 1) {
      fits = to.Is(trace.heads * trace.expansion);
    } else if (to.Is(-1)) {
      fits = !inferred;
      inferred = true;
    } else if (axis != 0 || !to.Is(0) || Differs(reshape, "allowzero")) {
      fits = to == SumOfExtent(graph, trace.value, static_cast<int64_t>(axis));
    }
  }
  if (fits) return {};
  return Because(DeclineCode::kKeyIsExpanded, "{} is not known to give [B, {}, T, D]", Describe(reshape),
                 trace.heads * trace.expansion);
}

Decline CheckTrace(const Graph& graph, const Trace& trace) {
  if (trace.expansion <= 1)
    return Because(DeclineCode::kKeyIsExpanded, "'{}' is not repeated, its other half is; needs both", trace.value);
  KVSHARE_RETURN_IF_ERROR(CheckExpand(graph, trace));
  return CheckReshape(graph, trace);
}

}  // namespace

Matched<RepeatMatch> MatchRepeat(const Layer& layer) {
  const Graph& graph = *layer.graph;
  const Node& node = *layer.node;
  if (HasPast(node)) return Because(DeclineCode::kOwnPast, "repeats its new heads, and has a past of as many");
  for (int output = 1; output < node.output_size(); ++output)
    if (!node.output(output).empty())
      return Because(DeclineCode::kOutputIsRead, "has an output {} '{}', which depends on the repetition", output,
                     node.output(output));
  const Trace key = BeforeExpansion(graph, Input(node, 1));
  const Trace value = BeforeExpansion(graph, Input(node, 2));
  KVSHARE_RETURN_IF_ERROR(CheckTrace(graph, key));
  KVSHARE_RETURN_IF_ERROR(CheckTrace(graph, value));
  const auto query = graph.Shape(Input(node, 0));
  if (key.heads != value.heads || key.expansion != value.expansion || !query || query->size() != kRank ||
      (*query)[1] != key.heads * key.expansion)
    return Because(DeclineCode::kHeads, "is not known to have {} query heads and as many of its key and value",
                   key.heads * key.expansion);
  return RepeatMatch{key.value, value.value};
}

}  // namespace kvshare::graph
