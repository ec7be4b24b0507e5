// Small graphs as text, for tests and fuzzing.
//
//   import com.microsoft 1
//   input q f32[B,S,128]
//   output o f32[B,S,128]
//   value q2 f32[B,S,128]
//   const shape i64[3] = 0 0 -1
//   o, pk, pv = com.microsoft.GroupQueryAttention(q, k, _, past_k) {num_heads=4, scale=0.5, perm=[0,2,1,3]}
//
// One statement a line, # opens a comment, _ is an absent input or output; a node goes by the name of its first output.
// Types are f32, f16, i64, i32 and bool. Extents are numbers or names.
#pragma once

#include <string>
#include <string_view>

#include "kvshare/status.h"
#include "onnx/onnx-ml.pb.h"

namespace kvshare::graph {

// kInvalidInput names the line.
Result<onnx::ModelProto> ParseTextGraph(std::string_view text);

// Nodes only, one a line, as ParseTextGraph reads them.
std::string ToText(const onnx::ModelProto& model);

}  // namespace kvshare::graph
