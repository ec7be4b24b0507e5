// Guards of repeat_kv, by which the graph repeats each key-value head for the query heads of its group: what must hold
// before attention may take the heads as they are.
#pragma once

#include <string>

#include "graph/layers.h"
#include "graph/match/decline.h"

namespace kvshare::graph {

struct RepeatMatch {
  std::string key;  // [B, Hkv, T, D], before the repetition
  std::string value;
};

// kKeyIsExpanded: the repetition is not known to change no more than the number of heads.
Matched<RepeatMatch> MatchRepeat(const Layer& layer);

}  // namespace kvshare::graph
