// Upstream's shared form becomes kvshare's.
//
//  before   com.microsoft::GroupQueryAttention(q, empty, empty, past: source.present, seqlens_k, total, ...)
//  after    kvshare::GroupQueryAttention(q, seqlens_k, total, ..., external: source.present)
#include "graph/rules/rule.h"
#include "graph/schema.h"

namespace kvshare::graph {
namespace {

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  if (!layer.IsShared() || !layer.IsGqa() || layer.IsKvshare()) return Outcome::NoMatch();
  Node& node = *layer.node;
  if (layer.constant_empty)
    return Outcome::Decline("its empty key is a constant, which fixes the batch to 1; this form is not converted yet");
  if (!layer.trouble.empty()) return Outcome::Decline("{}", layer.trouble);
  if (const auto text = UnknownAttributeText(node); !text.empty()) return Outcome::Decline("{}", text);
  if (layer.window == 0) return Outcome::Decline("has local_window_size 0; needs -1 or at least 1");
  const Layer& source = rewriting.SourceOf(layer);
  if (source.window != layer.window)
    return Outcome::Decline("source layer {} has window {}, shared layer has {}", source.index,
                            WindowText(source.window), WindowText(layer.window));
  if (source.kv_heads != layer.kv_heads)
    return Outcome::Decline("source layer {} has {} key-value heads, shared layer has {}", source.index,
                            source.kv_heads, layer.kv_heads);
  for (const int input : {1, 2, 3, 4}) {
    rewriting.released.push_back({&rewriting.GraphOf(layer), Input(node, input)});
    SetInput(node, input, "");
  }
  SetInput(node, kExternalKey, layer.key);
  SetInput(node, kExternalValue, layer.value);
  node.set_domain(kKvshare);
  rewriting.graph.RequireImport(kKvshare, 1);
  rewriting.GraphOf(layer).Touch();
  return Outcome::Applied();
}

}  // namespace

void RunSharedGqa(Rewriting& rewriting) { ForEachLayer(rewriting, kSharedGqaRule, Apply); }

}  // namespace kvshare::graph
