// Shared by the rules that turn ai.onnx's Attention into GroupQueryAttention.
#pragma once

#include <string>

#include "graph/layers.h"
#include "graph/masks.h"
#include "graph/rules/rule.h"

namespace kvshare::graph {

// Tells the reader of the report that a mask [B, S, T] was repaired: ONNX lines its B up with the heads.
void NoteRank3(Rewriting& rewriting, const MaskMeaning& mask);

// Of a layer whose mask compares columns and that now counts the lengths of its source, which is not said of the source
// itself.
void NoteColumns(Rewriting& rewriting, const Layer& layer, const MaskMeaning& mask);

// Op, domain and attributes; the inputs are the rule's. Scale and softcap mean the same in both operators.
void TurnIntoGqa(Rewriting& rewriting, const Layer& layer, const std::string& domain);

// Removes the nodes `key` and `value`; their outputs become the presents of `node`.
void TakeOverPresents(Graph& graph, const Node& node, const Node& key, const Node& value);

}  // namespace kvshare::graph
