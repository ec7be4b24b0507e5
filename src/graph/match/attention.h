// Guards of Attention: what must hold before its mask may be replaced by its meaning, a key mask [B, T], a window and
// causality by position. Rewrite rules and the claims of an execution provider ask here; both only read the graph.
#pragma once

#include <string>
#include <vector>

#include "graph/layers.h"
#include "graph/masks.h"
#include "graph/match/decline.h"

namespace kvshare::graph {

// Is its nonpad_kv_seqlen all rows of its key for each sequence? Its triangle and windows end at the last row then.
bool SeesAllKeys(const Layer& layer);

// The number of tokens along `input`, query, key or value.
Sum TokensOf(const Layer& layer, int input);

// The node's attributes and inputs, but for its past, its mask, its lengths and where its key comes from.
Decline CheckAttentionNode(const Layer& layer);

// The meaning of the layer's mask, which must hide the padding or compare columns, be causal (alone or by is_causal),
// and count as many queries as the layer's query has. Without a mask: that all keys are seen, where is_causal ends at
// the last.
Matched<MaskMeaning> CheckAttentionMask(const Layer& layer);

// Is the number of queries that `mask` counts the extent of `value`, the layer's query or key of this step? `what`
// names it in the message.
Decline CheckQueries(const Layer& layer, const MaskMeaning& mask, const std::string& value, const char* what);

// An own layer with past and present, or with keys joined outside of it: all of the above, for its key too. Its mask
// may hide no padding if it compares columns.
Matched<MaskMeaning> MatchOwnAttention(const Layer& layer);

struct SharedMatch {
  MaskMeaning mask;
  bool repairs_causality = false;  // is_causal was what made it causal, without a past
};

// kKeyFromOutside: the layer borrows from a graph input, as a drafter does from its target's caches.
Decline CheckSourceIsLayer(const Layer& layer);

// A layer that borrows from `layers[layer.source]`, or from a graph input. `counts_lengths`: what it turns into knows
// the mask only by the source's seqlens_k and total_sequence_length, as GroupQueryAttention does.
Matched<SharedMatch> MatchSharedAttention(const std::vector<Layer>& layers, const Layer& layer, bool counts_lengths);

// Does the layer's mask join conditions by Or, so that nothing but the mask says what it shows?
bool NeedsItsMask(const Layer& layer);

// May a layer run in kvshare's Attention, with its mask and its nonpad_kv_seqlen, and with the key and value that it
// borrows as they are?
Decline CheckWithItsMask(const std::vector<Layer>& layers, const Layer& layer);

}  // namespace kvshare::graph
