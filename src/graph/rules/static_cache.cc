// Attention over a cache that the graph writes itself runs in kvshare: it means the same there, whatever the caller
// gives as lengths and as rows to write, and reads no row behind a sequence's last or outside of what a mask shows.
//
//  before   Attention(q, K, V, mask, "", "", nonpad_kv_seqlen), K and V by TensorScatter or ScatterND
//  after    kvshare::Attention(the same)
#include "graph/match/static_cache.h"
#include "graph/rules/turn_attention.h"

namespace kvshare::graph {
namespace {

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  if (layer.IsKvshare() || !SeesStaticCache(rewriting.layers, layer)) return Outcome::NoMatch();
  if (rewriting.options.keep_own && !layer.IsShared()) return Outcome::NoMatch();
  return TurnAsItIs(rewriting, layer, "");
}

}  // namespace

void RunStaticCache(Rewriting& rewriting) { ForEachLayer(rewriting, kStaticCacheRule, Apply); }

}  // namespace kvshare::graph
