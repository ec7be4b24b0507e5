// Two layers as PyTorch's exporter writes them: layer 0 joins its caches by Concat, layer 1 takes the same keys and
// values; heads are repeated for their queries, and the mask compares columns.
#pragma once

#include <string_view>

#include "tests/graph/two_layers.h"

namespace kvshare::graph {

inline constexpr std::string_view kTorchLayers = R"(
input input_ids i64[batch,seq]
input attention_mask i64[batch,total]
input past_k f32[batch,2,past,8]
input past_v f32[batch,2,past,8]
input hidden f32[batch,seq,4,8]
input hidden_k f32[batch,seq,2,8]
input hidden_v f32[batch,seq,2,8]
output logits f32[batch,seq,32]
output present_k f32[batch,2,past + seq,8]
output present_v f32[batch,2,past + seq,8]
value q0 f32[batch,4,seq,8]
value q1 f32[batch,4,seq,8]
value k0 f32[batch,2,seq,8]
value v0 f32[batch,2,seq,8]
const nought i64[] = 0
const once i64[] = 1
const window i64[] = 4
const one i64[1] = 1
const two i64[1] = 2
const three i64[1] = 3
const four i64[1] = 4
const eight i64[1] = 8
const last i64[1] = -1
const front i64[2] = 0 1
const middle i64[2] = 1 2
const true bool[] = 1
S1 = Shape(input_ids) {start=1, end=2}
S = Squeeze(S1)
P1 = Shape(past_k) {start=2, end=3}
P = Squeeze(P1)
B1 = Shape(past_v) {start=0, end=1}
B = Squeeze(B1)
T = Add(P, S)
T1 = Reshape(T, last)
flags = Cast(attention_mask) {to=9}
rows = Range(nought, B, once)
rows3 = Unsqueeze(rows, middle)
b = Unsqueeze(rows3, three)
steps = Range(nought, S, once)
at = Add(steps, P)
at3 = Unsqueeze(at, front)
q = Unsqueeze(at3, three)
columns = Range(nought, T, once)
columns3 = Unsqueeze(columns, front)
kv = Unsqueeze(columns3, two)
causal = LessOrEqual(kv, q)
begin = Sub(q, window)
near = Greater(kv, begin)
near1 = And(true, near)
visible = And(near1, causal)
widest = Max(b, kv)
wide_bt = Shape(widest) {start=0}
bs = Expand(b, wide_bt)
bs5 = Unsqueeze(bs, last)
kvs = Expand(kv, wide_bt)
kvs5 = Unsqueeze(kvs, last)
index = Concat(bs5, kvs5) {axis=-1}
kept = GatherND(flags, index) {batch_dims=0}
both = And(visible, kept)
whole = Concat(B1, one, S1, T1) {axis=0}
mask = Expand(both, whole)
q0 = Transpose(hidden) {perm=[0,2,1,3]}
k0 = Transpose(hidden_k) {perm=[0,2,1,3]}
v0 = Transpose(hidden_v) {perm=[0,2,1,3]}
present_k = Concat(past_k, k0) {axis=-2}
present_v = Concat(past_v, v0) {axis=-2}
wide_shape = Concat(B1, two, two, T1, eight) {axis=0}
flat_shape = Concat(B1, four, T1, eight) {axis=0}
k5 = Unsqueeze(present_k, two)
kw = Expand(k5, wide_shape)
k = Reshape(kw, flat_shape) {allowzero=1}
v5 = Unsqueeze(present_v, two)
vw = Expand(v5, wide_shape)
v = Reshape(vw, flat_shape) {allowzero=1}
out0 = Attention(q0, k, v, mask) {scale=0.5, is_causal=0}
back0 = Transpose(out0) {perm=[0,2,1,3]}
q1 = Transpose(back0) {perm=[0,2,1,3]}
out1 = Attention(q1, k, v, mask) {scale=0.5, is_causal=0}
back1 = Transpose(out1) {perm=[0,2,1,3]}
fold = Concat(B1, S1, last) {axis=0}
logits = Reshape(back1, fold)
)";

inline std::string TorchLayersWith(std::string_view output, std::string_view line) {
  return TwoLayersWith(output, line, kTorchLayers);
}

}  // namespace kvshare::graph
