// What the rules that turn ai.onnx's Attention have in common.
#pragma once

#include <string>

#include "graph/graph.h"
#include "graph/layers.h"
#include "graph/masks.h"
#include "graph/rules/rule.h"

namespace kvshare::graph {

// Whatever the node must be to be turned, but for its past, its mask and where its key comes from. kRefused says why
// it is not.
Status CheckAttentionNode(const Layer& layer);

// The meaning of the layer's mask, which must hide the padding and be causal, alone or by is_causal.
Result<MaskMeaning> CheckAttentionMask(const Layer& layer);

// The batch meets the heads in a mask of rank 3.
void NoteRank3(Rewriting& rewriting, const MaskMeaning& mask);

// seqlens_k = Cast(Sub(ReduceSum(mask, [1]), 1)) and total_sequence_length = Cast(Gather(Shape(mask), 1)): that mask,
// "" where they are made in another way.
std::string SeqlensMask(const Graph& graph, const std::string& seqlens);
std::string TotalMask(const Graph& graph, const std::string& total);

// Op and attributes of GroupQueryAttention for this layer; scale and softcap mean the same in both operators.
void TurnIntoGqa(const Layer& layer);

}  // namespace kvshare::graph
