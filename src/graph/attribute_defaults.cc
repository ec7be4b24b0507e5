#include "graph/attribute_defaults.h"

#include <algorithm>
#include <array>

namespace kvshare::graph {
namespace {

struct Row {
  std::string_view op;
  std::string_view attribute;
  double value;
};

// The operators that layer forms, masks and rules look at. An attribute without a default has no row. A default of 0
// has one: a zero that is written out must equal absence.
constexpr std::array kRows = {
    Row{"Attention", "is_causal", 0},
    Row{"Attention", "left_window_size", -1},
    Row{"Attention", "right_window_size", -1},
    Row{"Attention", "local_window_size", -1},
    Row{"Attention", "qk_matmul_output_mode", 0},
    Row{"Attention", "softcap", 0},
    Row{"Cast", "saturate", 1},
    Row{"CumSum", "exclusive", 0},
    Row{"CumSum", "reverse", 0},
    Row{"FusedMatMul", "transA", 0},
    Row{"FusedMatMul", "transBatchA", 0},
    Row{"FusedMatMul", "transBatchB", 0},
    Row{"Gather", "axis", 0},
    Row{"GatherND", "batch_dims", 0},
    Row{"GroupQueryAttention", "causal", 1},
    Row{"GroupQueryAttention", "do_rotary", 0},
    Row{"GroupQueryAttention", "local_window_size", -1},
    Row{"GroupQueryAttention", "qk_output", 0},
    Row{"GroupQueryAttention", "rotary_interleaved", 0},
    Row{"GroupQueryAttention", "scale", 0},
    Row{"GroupQueryAttention", "sliding_window_cache", 0},
    Row{"GroupQueryAttention", "smooth_softmax", 0},
    Row{"GroupQueryAttention", "softcap", 0},
    Row{"LpNormalization", "axis", -1},
    Row{"ReduceL2", "keepdims", 1},
    Row{"ReduceMax", "keepdims", 1},
    Row{"ReduceMean", "keepdims", 1},
    Row{"ReduceSum", "keepdims", 1},
    Row{"ReduceSum", "noop_with_empty_axes", 0},
    Row{"ReduceSumSquare", "keepdims", 1},
    Row{"Reshape", "allowzero", 0},
    Row{"RotaryEmbedding", "interleaved", 0},
    Row{"RotaryEmbedding", "num_heads", 0},
    Row{"RotaryEmbedding", "rotary_embedding_dim", 0},
    Row{"Shape", "start", 0},
    Row{"Split", "axis", 0},
    Row{"TensorScatter", "axis", -2},
};

}  // namespace

std::optional<double> AttributeDefault(const Node& node, std::string_view attribute) {
  const auto* const row = std::find_if(kRows.begin(), kRows.end(), [&](const Row& candidate) {
    return candidate.op == node.op_type() && candidate.attribute == attribute;
  });
  return row == kRows.end() ? std::nullopt : std::optional(row->value);
}

}  // namespace kvshare::graph
