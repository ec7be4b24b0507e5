// The part of a decoder behind its last own keys: may it compute each sequence's last token alone? Layers there borrow
// their keys and values, so that no other token is needed for anything but its own logits.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "graph/layers.h"
#include "graph/match/decline.h"

namespace kvshare::graph {

// A value of all tokens where a node of that part reads it.
struct TokenCut {
  const Node* node = nullptr;
  int input = 0;
  int64_t axis = 0;  // of the tokens, from the end
  int64_t rank = 0;
  int64_t batch = 0;  // the axis of the sequences, from the front
};

struct LastTokenPlan {
  const Node* first = nullptr;  // the first layer of that part
  std::string logits;
  // Which token is a sequence's last: by seqlens_k of GroupQueryAttention, or by a mask [B, T] of what is kept.
  std::string seqlens;
  std::string mask;
  std::string keys;   // "": the mask ends at the last token; else at the number of this value's rows, its axis -2
  std::string query;  // holds this step's tokens along its axis -2
  std::vector<TokenCut> cuts;                          // none: it computes one token already
  std::map<std::string, int64_t> narrowed;             // values of that part, and the axis of their tokens
  std::map<const Node*, std::vector<int64_t>> shapes;  // of Reshape nodes that named the number of tokens
  std::vector<const Node*> triangles;                  // Attention that must no longer be causal beside its mask
  std::vector<const Node*> unneeded;                   // read all tokens of that part, for no graph output
};

// kNothingShared: no such layer. kTokensMixed, kShapeUnknown: ReadTokens. kValueIsOutput, kValueIsRead: what another
// reads of all tokens. kMaskUnknown, kOwnLengths, kLengthsDiffer: a sequence's last token is not known.
Matched<LastTokenPlan> MatchLastToken(const Graph& graph, const std::vector<Layer>& layers);

}  // namespace kvshare::graph
