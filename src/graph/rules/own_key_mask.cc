// A layer that owns its K/V in Attention, with a mask, keeps its caches as they are and needs no mask: kvshare's
// Attention knows window and causality by itself, and takes attention_mask.
//
//  before   Attention(q, k, v, mask, past_key, past_value)      Attention(q, Concat(past_key, k), Concat(past_value,
//  v), mask) after    kvshare::Attention(q, k, v, _, past_key, past_value, _, attention_mask), or the same with padding
//  alone
#include "graph/match/attention.h"
#include "graph/match/static_cache.h"
#include "graph/rules/turn_attention.h"
#include "graph/rules/turn_gqa.h"

namespace kvshare::graph {
namespace {

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  if (layer.IsShared() || layer.IsGqa() || layer.IsKvshare()) return Outcome::NoMatch();
  if (SeesStaticCache(rewriting.layers, layer)) return Outcome::NoMatch();  // the rule static-cache turns it
  if (NeedsItsMask(layer)) return TurnWithItsMask(rewriting, layer);
  const auto mask = MatchOwnAttention(layer);
  if (!mask.ok()) return Outcome::Declined(mask.status());
  TurnIntoKvshareAttention(rewriting, layer, *mask);
  NoteRank3(rewriting, *mask);
  return Outcome::Applied();
}

}  // namespace

void RunOwnKeyMask(Rewriting& rewriting) { ForEachLayer(rewriting, kOwnKeyMaskRule, Apply); }

}  // namespace kvshare::graph
