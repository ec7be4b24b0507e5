// Shared by the rules that turn layers into ai.onnx's Attention of opset 25: lengths. Its window attributes and
// is_causal count from the past's rows, or with nonpad_kv_seqlen [B] so that a query block ends there.
#pragma once

#include <string>

#include "graph/layers.h"
#include "graph/rules/rule.h"

namespace kvshare::graph {

// Its query, and where it is Attention also its key and value, are [B, S, heads * D]; else [B, heads, S, D].
bool IsFlat(const Layer& layer);

// [B]: all rows of the Attention's key for each sequence.
std::string AllKeys(Rewriting& rewriting, const Layer& layer);

// Where a GroupQueryAttention's sequences stand, by its seqlens_k and total_sequence_length.
struct Places {
  std::string begin;  // [B]: the position of its first query
  std::string end;    // [B]: one behind that of its last
  std::string count;  // [1]: of its queries
  std::string rows;   // [1]: total_sequence_length
};
// `node`: a GroupQueryAttention that has the lengths; the queries are those of `layer`.
Places PlacesOf(Rewriting& rewriting, const Layer& layer, const Node& node);

struct StandardInputs {
  std::string query;
  std::string key;
  std::string value;
  std::string mask;      // "": none
  std::string past_key;  // "": `key` and `value` are all keys, of which there are
  std::string past_value;
  std::string lengths;        // so many
  bool as_they_were = false;  // query, key and value have the ranks that they had
};
// Op, domain, inputs and attributes: causal, with the layer's window. The model's import of ai.onnx is raised.
void TurnIntoStandard(Rewriting& rewriting, const Layer& layer, const StandardInputs& inputs);

}  // namespace kvshare::graph
