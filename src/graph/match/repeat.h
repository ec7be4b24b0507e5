// What must hold before attention may take key-value heads as they are, where the graph repeats each for the query
// heads of its group (repeat_kv).
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
