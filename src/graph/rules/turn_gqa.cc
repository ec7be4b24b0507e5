#include "graph/rules/turn_gqa.h"

namespace kvshare::graph {
void NoteRank3(Rewriting& rewriting, const MaskMeaning& mask) {
  if (mask.rank == 3)
    rewriting.Note(
        "masks were [B,S,T], whose B the specification lines up with the heads; they are taken as meant, one a "
        "sequence, so batches larger than 1 are repaired");
}

void TurnIntoGqa(const Layer& layer) {
  Node& node = *layer.node;
  const Node old = node;
  node.clear_attribute();
  SetInt(node, "num_heads", layer.query_heads);
  SetInt(node, "kv_num_heads", layer.kv_heads);
  SetInt(node, "do_rotary", 0);
  if (layer.window != kFullWindow) SetInt(node, "local_window_size", layer.window);
  for (const char* kept : {"scale", "softcap"}) {
    const auto* attribute = FindAttribute(old, kept);
    if (attribute != nullptr && attribute->f() != 0.0F) *node.add_attribute() = *attribute;
  }
  node.set_op_type("GroupQueryAttention");
}

}  // namespace kvshare::graph
