// Own layers with a window keep its keys alone, and a few more, and so do the layers that borrow them.
//
//  before   kvshare::GroupQueryAttention(q, k, v, past) {local_window_size=W}             past: a row for each token
//  after    kvshare::GroupQueryAttention(q, k, v, past) {local_window_size=W, window_cache_rows=C}    past: C rows
//
// C is W and the slack that the caller asks for: chunks of up to C - W + 1 tokens fit caches of C rows that stay where
// they are. A longer chunk's present is longer, and the step after it is back to C rows.
#include <algorithm>
#include <limits>

#include "graph/extents.h"
#include "graph/match/caches.h"
#include "graph/rules/rule.h"

namespace kvshare::graph {
namespace {

// The rows of a window-sized cache tell no longer how many tokens there are.
Decline CheckCounts(const Rewriting& rewriting, const Layer& layer) {
  const Graph& graph = *layer.graph;
  const std::string& total = Input(*layer.node, 6);
  const bool counts_rows = std::ranges::any_of(rewriting.layers, [&](const Layer& other) {
    return other.IsGqa() && !other.IsShared() && other.window != kFullWindow &&
           graph.DependsOn(total, Input(*other.node, 3));
  });
  if (!counts_rows && !KnownInts(graph, total)) return {};
  return Because(DeclineCode::kLengthsUnknown,
                 "its total_sequence_length '{}' is {}; needs the number of tokens so far, as the columns of an "
                 "attention_mask or the rows of a layer without a window tell it",
                 total, counts_rows ? "counted from the rows of a cache that would keep a window" : "fixed");
}

Decline CheckOwn(const Rewriting& rewriting, const Layer& layer) {
  // Nodes that count rows read the past, too: this reason says more than their names.
  if (layer.IsGqa() && layer.IsKvshare()) KVSHARE_RETURN_IF_ERROR(CheckCounts(rewriting, layer));
  KVSHARE_RETURN_IF_ERROR(CheckOwnCache(layer, kAllButRows));
  if (Differs(*layer.node, "sliding_window_cache"))
    return Because(DeclineCode::kAlreadyConverted, "has sliding_window_cache, whose rows its past tells");
  if (layer.window != IntAttribute(*layer.node, "local_window_size"))
    return Because(DeclineCode::kWindowAttribute,
                   "has its window of {} keys in attention_bias; needs local_window_size", layer.window);
  if (layer.window > std::numeric_limits<int32_t>::max())
    return Because(DeclineCode::kWindowAttribute, "has a window of {} keys", layer.window);
  return {};
}

Decline CheckBorrower(const Layer& layer, const Layer& borrower) {
  if (BorrowsByName(borrower) && borrower.window == layer.window) return {};
  return Because(
      DeclineCode::kSourceForm,
      "layer {} borrows its cache and has window {}; needs kvshare::GroupQueryAttention with external_key and "
      "window {}",
      borrower.index, WindowText(borrower.window), WindowText(layer.window));
}

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  const Node& node = *layer.node;
  if (layer.IsShared() || layer.window == kFullWindow || IntAttribute(node, kWindowCacheRows) > 0)
    return Outcome::NoMatch();
  if (Decline odd = CheckOwn(rewriting, layer); !odd.ok()) return Outcome::Declined(std::move(odd));
  const auto borrowers = BorrowersOf(rewriting.layers, layer);
  for (const Layer* borrower : borrowers)
    if (Decline odd = CheckBorrower(layer, *borrower); !odd.ok()) return Outcome::Declined(std::move(odd));
  if (Decline read = CheckPresents(layer, borrowers, kAllButRows); !read.ok())
    return Outcome::Declined(std::move(read));

  const int64_t rows = layer.window + *rewriting.options.window_caches;
  Graph& graph = rewriting.GraphOf(layer);
  graph.SetInt(node, kWindowCacheRows, rows);
  for (const Layer* borrower : borrowers) rewriting.GraphOf(*borrower).SetInt(*borrower->node, kWindowCacheRows, rows);
  // No longer the extents of caches that grow, whose symbols they had.
  for (const int past : {3, 4}) graph.SetExtent(Input(node, past), -2, fmt::format("past_window_of_{}", rows));
  for (const int present : {1, 2})
    graph.SetExtent(Output(node, present), -2, fmt::format("present_window_of_{}", rows));
  return Outcome::Applied(fmt::format(
      "changed contract: caches of layers with window {} have {} rows, or {} and the tokens of a longer "
      "chunk right after it; without tokens they may have none. Bound in place, they take chunks of at most "
      "{} tokens",
      layer.window, rows, layer.window - 1, rows - layer.window + 1));
}

}  // namespace

void RunWindowCaches(Rewriting& rewriting) { ForEachLayer(rewriting, kWindowCachesRule, Apply); }

}  // namespace kvshare::graph
