// What the rules that turn ai.onnx's Attention into GroupQueryAttention have in common.
#pragma once

#include "graph/layers.h"
#include "graph/masks.h"
#include "graph/rules/rule.h"

namespace kvshare::graph {

// Tells the reader of the report that a mask [B, S, T] was repaired: ONNX lines its B up with the heads.
void NoteRank3(Rewriting& rewriting, const MaskMeaning& mask);

// Op and attributes of GroupQueryAttention for this layer; scale and softcap mean the same in both operators.
void TurnIntoGqa(const Layer& layer);

}  // namespace kvshare::graph
