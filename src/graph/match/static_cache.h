// Guards of layers whose keys the graph itself writes into a cache (TensorScatter, ScatterND): what must hold before
// such a layer may be turned.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "graph/layers.h"
#include "graph/match/decline.h"
#include "graph/match/lengths.h"

namespace kvshare::graph {

// Does the layer, Attention, see what was written into a static cache: as many rows as its nonpad_kv_seqlen says, or
// those that its mask shows of a cache with an own layer's new rows?
bool SeesStaticCache(const std::vector<Layer>& layers, const Layer& layer);

// An own layer's TensorScatter, which writes the new rows right before the row where nonpad_kv_seqlen ends.
struct ScatterMatch {
  std::string key;  // [B, Hkv, S, D]: the new rows
  std::string value;
  std::string past_key;  // [B, Hkv, P, D]
  std::string past_value;
  std::string ends;                // nonpad_kv_seqlen
  std::optional<Lengths> lengths;  // nothing: seqlens_k is ends - 1, and total_sequence_length the number of
  int64_t rows = 0;                // rows, which is fixed
};

// kCacheIsScattered: the cache is not written row by row along axis 2 of [B, Hkv, P, D], by TensorScatter.
// kOwnLengths: nothing proves that new rows end where nonpad_kv_seqlen does. kMaskUnknown, kNotCausal: what it sees.
// kValueIsRead: others than attention read the rows.
Matched<ScatterMatch> MatchScatter(const Layer& layer);

}  // namespace kvshare::graph
