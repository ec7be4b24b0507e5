// The smallest mixed graph: layer 0 owns its K/V, layer 1 borrows them through Attention and a float mask.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include "graph/graph.h"
#include "tests/support/text_graph.h"

namespace kvshare::graph {

inline constexpr std::string_view kTwoLayers = R"(
import com.microsoft 1
input input_ids i64[B,S]
input attention_mask i64[B,T]
input position_ids i64[B,S]
input past_k f32[B,1,P,8]
input past_v f32[B,1,P,8]
output logits f32[B,S,32]
output present_k f32[B,1,T,8]
output present_v f32[B,1,T,8]
const weight f32[16,32] = 1
const projection f32[32,8] = 1
const cos_table f32[64,4] = 1
const sin_table f32[64,4] = 1
const one i64[1] = 1
const two i64[1] = 2
const window i64[] = 4
const zero f32[] = 0
const hidden f32[] = -3.4e38
const fold i64[3] = 0 0 -1
q0 = Gather(weight, input_ids)
k0 = MatMul(q0, projection)
ones = ReduceSum(attention_mask, one) {keepdims=0}
last = Sub(ones, one)
seqlens = Cast(last) {to=6}
extents = Shape(attention_mask)
total64 = Gather(extents, one)
total = Cast(total64) {to=6}
out0, present_k, present_v = com.microsoft.GroupQueryAttention(q0, k0, k0, past_k, past_v, seqlens, total, cos_table, sin_table) {num_heads=4, kv_num_heads=1, scale=1.0, do_rotary=1, local_window_size=4}
count = CumSum(attention_mask, one)
kv = Unsqueeze(count, one)
S = Shape(input_ids) {start=1, end=2}
T = Shape(attention_mask) {start=1, end=2}
begin = Sub(T, S)
new = Slice(count, begin, T, one)
q = Unsqueeze(new, two)
causal = GreaterOrEqual(q, kv)
distance = Sub(q, kv)
near = Less(distance, window)
visible = And(causal, near)
wide = Unsqueeze(attention_mask, one)
kept = Cast(wide) {to=9}
both = And(kept, visible)
bias3 = Where(both, zero, hidden)
bias = Unsqueeze(bias3, one)
cos = Gather(cos_table, position_ids)
sin = Gather(sin_table, position_ids)
rotated = RotaryEmbedding(out0, cos, sin) {num_heads=4}
kt = Transpose(present_k) {perm=[0,2,1,3]}
k1 = Reshape(kt, fold)
vt = Transpose(present_v) {perm=[0,2,1,3]}
v1 = Reshape(vt, fold)
out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=1, scale=1.0, is_causal=1}
logits = Identity(out1)
)";

// kTwoLayers with the line that makes `output` (or declares it) replaced by `line`.
inline std::string TwoLayersWith(std::string_view output, std::string_view line, std::string_view from = kTwoLayers) {
  std::string text;
  size_t begin = 0;
  bool found = false;
  while (begin < from.size()) {
    const size_t end = std::min(from.find('\n', begin), from.size());
    const std::string_view old = from.substr(begin, end - begin);
    const bool hit = old.starts_with(std::string(output) + " = ") ||
                     old.starts_with("const " + std::string(output) + " ") ||
                     old.starts_with(std::string(output) + ", ");
    text += std::string(hit ? line : old) + "\n";
    found = found || hit;
    begin = end + 1;
  }
  EXPECT_TRUE(found) << output;
  return text;
}

// Upstream's shared form, with presents that are named and unused.
inline std::string UpstreamsForm(std::string_view more = "") {
  return TwoLayersWith(
      "out1",
      "B = Shape(out0) {start=0, end=1}\nrest = Constant() {value_ints=[0,8]}\nextent = Concat(B, rest) {axis=0}\n"
      "empty = ConstantOfShape(extent)\nseqlens2 = Abs(seqlens)\n"
      "out1, own_k, own_v = com.microsoft.GroupQueryAttention(rotated, empty, empty, present_k, present_v, seqlens2, "
      "total) {num_heads=4, kv_num_heads=1, local_window_size=4}\n" +
          std::string(more));
}

// A graph in which one line differs, for parameterized tests.
struct NearMiss {
  const char* name;
  const char* output;  // of the line that differs
  const char* line;
  const char* reason;  // what is said of it
};

inline Graph GraphOf(std::string_view text) {
  auto model = ParseTextGraph(text);
  EXPECT_TRUE(model.ok()) << (model.ok() ? "" : model.status().message());
  auto graph = Graph::Make(*std::move(model), ".");
  EXPECT_TRUE(graph.ok()) << (graph.ok() ? "" : graph.status().message());
  return *std::move(graph);
}

}  // namespace kvshare::graph
