#include "graph/match/static_cache.h"

#include <algorithm>

#include "graph/extents.h"
#include "graph/match/attention.h"
#include "graph/sums.h"

namespace kvshare::graph {
namespace {

constexpr int64_t kRows = 2;  // the axis of the rows in [B, Hkv, P, D]
constexpr size_t kRank = 4;

// Pad(past, [0, 0, 0, 0, 0, 0, Max(total - P, 0), 0]), as `--to onnx25` makes room for new rows: total, [1]; "" where
// it is another Pad.
std::string RowsOfPad(const Graph& graph, const Node& pad) {
  const auto* mode = FindAttribute(pad, "mode");
  if ((mode != nullptr && mode->s() != "constant") || !Input(pad, 2).empty() || !Input(pad, 3).empty()) return "";
  const Node* pads = graph.Producer(graph.Origin(Input(pad, 1)));
  if (!graph.IsOnnx(pads, "Concat") || pads->input_size() != 3) return "";
  if (KnownInts(graph, Input(*pads, 0)) != std::vector<int64_t>(kRank + kRows, 0) ||
      KnownInts(graph, Input(*pads, 2)) != std::vector<int64_t>{0})
    return "";
  const Node* room = graph.Producer(graph.Origin(Input(*pads, 1)));
  if (!graph.IsOnnx(room, "Max") || room->input_size() != 2) return "";
  if (KnownInts(graph, Input(*room, 1)) != std::vector<int64_t>{0}) return "";
  const Node* more = graph.Producer(graph.Origin(Input(*room, 0)));
  if (!graph.IsOnnx(more, "Sub")) return "";
  return SumOf(graph, Input(*more, 1)) == SumOfExtent(graph, Input(pad, 0), kRows) ? Input(*more, 0) : "";
}

Decline CheckWriter(const Layer& layer, const StaticCache& cache, const std::string& rows) {
  const Graph& graph = *layer.graph;
  if (cache.writer == nullptr)
    return Because(DeclineCode::kCacheIsScattered, "'{}' is not a cache with new rows; its other half is", rows);
  const Node& writer = *cache.writer;
  if (!graph.IsOnnx(&writer, "TensorScatter"))
    return Because(DeclineCode::kCacheIsScattered, "{} writes where its indices say, which need not be rows in order",
                   Describe(writer));
  const auto* mode = FindAttribute(writer, "mode");
  if (mode != nullptr && mode->s() != "linear")
    return Because(DeclineCode::kCacheIsScattered, "{} has mode '{}'; needs 'linear'", Describe(writer), mode->s());
  const auto shape = graph.Shape(cache.cache);
  const int64_t axis = IntAttribute(writer, "axis");
  if (!shape || shape->size() != kRank || (axis != kRows && axis != kRows - static_cast<int64_t>(kRank)))
    return Because(DeclineCode::kCacheIsScattered, "{} writes along axis {} of a cache of rank {}; needs axis 2 of 4",
                   Describe(writer), axis, shape ? shape->size() : 0);
  if (graph.Origin(rows) != writer.output(0))
    return Because(DeclineCode::kCacheIsScattered, "a Transpose lies between {} and it", Describe(writer));
  return {};
}

// Do the new rows of `writer` end where nonpad_kv_seqlen does, and are there as many as queries?
Decline CheckPlace(const Layer& layer, const Node& writer) {
  const Graph& graph = *layer.graph;
  const std::string& ends = graph.Origin(Input(*layer.node, 6));
  const Sum queries = TokensOf(layer, 0);
  if (const Sum added = SumOfExtent(graph, Input(writer, 1), kRows); added != queries)
    return Because(DeclineCode::kKeyNotOfThisStep, "{} writes {} rows; its query has {}", Describe(writer),
                   TextOf(added), TextOf(queries));
  const Node* begin = graph.Producer(graph.Origin(Input(writer, 2)));
  if (!graph.IsOnnx(begin, "Sub") || graph.Origin(Input(*begin, 0)) != ends ||
      SumOf(graph, Input(*begin, 1)) != queries)
    return Because(DeclineCode::kOwnLengths,
                   "nothing proves that '{}' is '{}' less the number of queries, which is where new rows end",
                   Input(writer, 2), ends);
  return {};
}

// Checks that a query sees all rows up to its own, as in GroupQueryAttention.
Decline CheckSight(const Layer& layer) {
  const Node& node = *layer.node;
  if (Input(node, 6).empty())
    return Because(DeclineCode::kOwnLengths, "has no nonpad_kv_seqlen, which says how many rows it sees");
  if (!Input(node, 3).empty()) return Because(DeclineCode::kMaskUnknown, "has a mask beside nonpad_kv_seqlen");
  if (IntAttribute(node, "is_causal") != 1 && IntAttribute(node, "right_window_size") != 0)
    return Because(DeclineCode::kNotCausal, "is not causal");
  for (int output = 1; output < node.output_size(); ++output)
    if (!node.output(output).empty() && layer.graph->IsRead(node.output(output)))
      return Because(DeclineCode::kOutputIsRead, "its output {} '{}' is read", output, node.output(output));
  return {};
}

// How many rows each sequence has: said by GroupQueryAttention's words, or by ends alone where their room is fixed.
Decline ReadLengths(const Layer& layer, ScatterMatch& match) {
  const Graph& graph = *layer.graph;
  if (!layer.static_key.grows) {
    match.rows = layer.static_key.rows;
    if (match.rows > 0 && layer.static_value.rows == match.rows) return {};
    return Because(DeclineCode::kShapeUnknown, "the number of rows of '{}' is not fixed", match.past_key);
  }
  match.lengths = LengthsOfEnds(graph, match.ends, TokensOf(layer, 0));
  for (const StaticCache* cache : {&layer.static_key, &layer.static_value}) {
    const std::string rows = RowsOfPad(graph, *graph.Producer(Input(*cache->writer, 0)));
    if (!match.lengths || BeforeFlat(graph, rows) != match.lengths->total)
      return Because(DeclineCode::kLengthsUnknown, "'{}' and the room in '{}' are not known to count one sequence",
                     match.ends, cache->cache);
  }
  return {};
}

}  // namespace

bool SeesStaticCache(const std::vector<Layer>& layers, const Layer& layer) {
  if (layer.IsGqa() || HasPast(*layer.node)) return false;
  if (layer.static_key.writer != nullptr) return true;
  if (layer.IsShared() && layer.source >= 0 && layers[static_cast<size_t>(layer.source)].static_key.writer != nullptr)
    return true;
  return !Input(*layer.node, 6).empty() && !SeesAllKeys(layer);
}

Matched<ScatterMatch> MatchScatter(const Layer& layer) {
  const Graph& graph = *layer.graph;
  const Node& node = *layer.node;
  if (!layer.trouble.ok()) return layer.trouble;
  KVSHARE_RETURN_IF_ERROR(CheckAttentionNode(layer));
  KVSHARE_RETURN_IF_ERROR(CheckWriter(layer, layer.static_key, Input(node, 1)));
  KVSHARE_RETURN_IF_ERROR(CheckWriter(layer, layer.static_value, Input(node, 2)));
  KVSHARE_RETURN_IF_ERROR(CheckSight(layer));
  ScatterMatch match;
  match.ends = graph.Origin(Input(node, 6));
  for (const StaticCache* cache : {&layer.static_key, &layer.static_value}) {
    KVSHARE_RETURN_IF_ERROR(CheckPlace(layer, *cache->writer));
    const std::string& rows = cache->writer->output(0);
    const auto& readers = graph.Consumers(rows);
    const auto other = std::ranges::find_if(readers, [](const Node* reader) { return !IsAttentionOp(*reader); });
    if (other != readers.end())
      return Because(DeclineCode::kValueIsRead, "'{}' is read by {} too", rows, Describe(**other));
  }
  match.past_key = layer.static_key.cache;
  match.past_value = layer.static_value.cache;
  match.key = Input(*layer.static_key.writer, 1);
  match.value = Input(*layer.static_value.writer, 1);
  KVSHARE_RETURN_IF_ERROR(ReadLengths(layer, match));
  for (const std::string& rows : {Input(node, 1), Input(node, 2)})
    for (const std::string& needed : {Input(node, 0), match.key, match.value, match.ends})
      if (graph.DependsOn(needed, rows))
        return Because(DeclineCode::kKeyNotOfThisStep, "'{}' depends on '{}', which it would make", needed, rows);
  return match;
}

}  // namespace kvshare::graph
