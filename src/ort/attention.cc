#include "ort/attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kvshare/call.h"
#include "ort/attention_mask.h"
#include "ort/call_exec.h"
#include "ort/input_error.h"
#include "ort/scratch.h"
#include "ort/stats.h"

namespace kvshare::ort {
namespace {

using enum attention::Input;
using Inputs = std::array<Tensor, kInputs>;

// What output 3 holds, by attribute qk_matmul_output_mode.
constexpr ScoreStage kScoreStages[] = {ScoreStage::kRaw, ScoreStage::kSoftcapped, ScoreStage::kMasked,
                                       ScoreStage::kWeights};

struct Attributes {
  bool causal = false;
  int64_t query_heads = 0;  // 0: not given, 4-D tensors say
  int64_t kv_heads = 0;
  std::optional<float> scale;
  float softcap = 0;
  int64_t window = -1;       // local_window_size: keys with the query's own
  int64_t window_left = -1;  // opset 25: keys before the query's own
  int64_t window_right = -1;
  int64_t scores = 0;  // qk_matmul_output_mode
};

Attributes ReadAttributes(const NodeInfo& node) {
  Attributes a;
  a.causal = node.IsOn("is_causal");
  a.query_heads = node.Int("q_num_heads").value_or(0);
  a.kv_heads = node.Int("kv_num_heads").value_or(0);
  a.scale = node.Float("scale");
  a.softcap = node.Softcap();
  a.window = node.Int("local_window_size").value_or(-1);
  a.window_left = node.Int("left_window_size").value_or(-1);
  a.window_right = node.Int("right_window_size").value_or(-1);
  a.scores = node.Int("qk_matmul_output_mode").value_or(0);
  return a;
}

// So that sums and products with the other extents stay in range.
bool IsHeads(int64_t heads) { return heads >= 0 && heads <= std::numeric_limits<int32_t>::max(); }

Status CheckAttributes(const std::string& where, const Attributes& a) {
  const auto error = [&](const char* name, int64_t value, const char* want) {
    return Status::InvalidInput(fmt::format("{}: attribute '{}' is {}; needs {}", where, name, value, want));
  };
  if (a.window == 0)
    return error("local_window_size", 0, "at least 1 (keys with the query's own), or -1 for no window");
  if (a.window > 0 && !a.causal) return error("local_window_size", a.window, "is_causal = 1");
  if (a.window > 0 && a.window_left >= 0)
    return error("local_window_size", a.window, "left_window_size = -1: one of the two");
  if (a.window_left < -1) return error("left_window_size", a.window_left, "-1 or more");
  if (a.window_right < -1) return error("right_window_size", a.window_right, "-1 or more");
  if (a.scores < 0 || a.scores >= std::ssize(kScoreStages))
    return error("qk_matmul_output_mode", a.scores, "0 (raw), 1 (softcap), 2 (mask) or 3 (softmax)");
  if (!IsHeads(a.query_heads)) return error("q_num_heads", a.query_heads, "0 to 2147483647");
  if (!IsHeads(a.kv_heads)) return error("kv_num_heads", a.kv_heads, "0 to 2147483647");
  return {};
}

Status CheckKeyMaskType(std::string_view where, ONNXTensorElementDataType type) {
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED || type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 ||
      type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 || type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL)
    return {};
  return InputError(where, "key_mask", fmt::format("has type {}", NameOf(type)), "int64, int32 or bool");
}

// [B, heads, tokens, D], or [B, tokens, heads*D] with the attribute `heads_name` = heads.
Result<HeadsView> View(const std::string& where, const char* name, const Tensor& tensor, const char* heads_name,
                       int64_t heads) {
  if (tensor.rank == 4) {
    if (heads > 0 && tensor.dims[1] != heads)
      return InputError(where, name, fmt::format("has {} heads (shape {})", tensor.dims[1], tensor.ShapeText()),
                        fmt::format("{} = {}", heads_name, heads));
    return HeadsView::Bnsh(tensor.data, tensor.CoreType(), tensor.dims[0], tensor.dims[1], tensor.dims[2],
                           tensor.dims[3]);
  }
  KVSHARE_RETURN_IF_ERROR(
      CheckRank(where, name, tensor, 3, "rank 3 [B, tokens, heads*D] or rank 4 [B, heads, tokens, D]"));
  if (heads == 0 || tensor.dims[2] == 0 || tensor.dims[2] % heads != 0)
    return InputError(where, name, fmt::format("has shape {} and {} is {}", tensor.ShapeText(), heads_name, heads),
                      "a number of heads that divides the last extent");
  return HeadsView::Bsnh(tensor.data, tensor.CoreType(), tensor.dims[0], tensor.dims[1], heads, tensor.dims[2] / heads);
}

// The views and numbers of one call, before outputs.
struct Problem {
  int64_t B = 0, S = 0, T = 0, past = 0;
  int64_t keys = 0;  // those of T that key_mask has columns for
  HeadsView query, key, value, past_key, past_value;
  MaskView mask;
};

class Attention final : public Kernel {
 public:
  Attention(const OpBinding& binding, const NodeInfo& node)
      : where_(fmt::format("{} '{}'", binding.op, node.Name())),
        attributes_(ReadAttributes(node)),
        inputs_(std::min<size_t>(node.InputCount(), kInputs)),
        lower_right_(std::string_view(binding.domain) == "kvshare" || binding.config.lower_right),
        backend_(*binding.backend),
        stats_(StatsOf(binding.domain, binding.op, node.Name())) {}

  const std::string& where() const { return where_; }
  const Attributes& attributes() const { return attributes_; }

  Status Run(CallContext& context) override {
    KVSHARE_ASSIGN_OR_RETURN(const Inputs in, context.Inputs<kInputs>(inputs_));
    KVSHARE_ASSIGN_OR_RETURN(const Problem p, Judge(in));
    KVSHARE_ASSIGN_OR_RETURN(const Positions positions, PositionsOf(in, p));

    Outputs out;
    KVSHARE_RETURN_IF_ERROR(MakeOutputs(context, in, p, &out));
    AttentionCall call = ViewCall(in, p, out);
    call.positions = positions;
    CallExec call_exec(context, backend_, in[kQ], where_);
    KVSHARE_RETURN_IF_ERROR(call_exec.Begin());
    Exec& exec = *call_exec;

    // Past and new rows must stand in one tensor: present, or scratch where the node has no such present.
    const bool joined = p.past > 0;
    KVSHARE_ASSIGN_OR_RETURN(const AppendCall key, Join(p.past_key, p.key, out.present_key, joined, p, exec.memory));
    KVSHARE_ASSIGN_OR_RETURN(const AppendCall value,
                             Join(p.past_value, p.value, out.present_value, joined, p, exec.memory));
    if (joined) {
      call.key = Const(key.present);
      call.value = Const(value.present);
    }
    const bool attend = p.B > 0 && p.S > 0 && p.T > 0;
    if (attend && in[kMask] && !call.mask) {
      if (backend_.memory == Memory::kDevice)
        return InputError(where_, "attn_mask", fmt::format("has type {}", NameOf(in[kMask].type)),
                          "bool, f32, f16 or bf16: no kernel of this provider converts it");
      KVSHARE_ASSIGN_OR_RETURN(void* const mask,
                               exec.memory.Take(static_cast<size_t>(in[kMask].Count()) * SizeOf(call.mask.type)));
      ConvertMask(in[kMask], exec.parallel, mask, &call.mask);
    }
    // Also where nothing is attended: what is appended has the shape of the outputs only if the inputs fit together.
    KVSHARE_RETURN_IF_ERROR(CheckAttention(call, where_));
    if (p.T > 0) KVSHARE_RETURN_IF_ERROR(CheckAppends(key, value));

    if (p.B > 0 && p.T > 0)
      for (const AppendCall* append : {&key, &value})
        if (append->present) KVSHARE_RETURN_IF_ERROR(backend_.append(*append, exec));
    if (attend)
      KVSHARE_RETURN_IF_ERROR(backend_.attend(call, exec));
    else if (out.y.Count() > 0)  // without keys every row is zero; an empty tensor has no memory
      KVSHARE_RETURN_IF_ERROR(
          backend_.clear(out.y.data, static_cast<size_t>(out.y.Count()) * SizeOf(out.y.CoreType()), exec));
    stats_.Ran(exec.kernel);
    return {};
  }

 private:
  struct Outputs {
    Tensor y, present_key, present_value, scores;
  };

  // Either may have no present.
  Status CheckAppends(const AppendCall& key, const AppendCall& value) const {
    if (key.present && value.present) return CheckAppend(key, value, where_);
    return key.present || value.present ? CheckAppend(key.present ? key : value, where_) : Status();
  }

  // Ranks, heads and which inputs may stand together.
  Result<Problem> Judge(const Inputs& in) const {
    Problem p;
    KVSHARE_RETURN_IF_ERROR(CheckPair(where_, "past_key", bool(in[kPastK]), "past_value", bool(in[kPastV])));
    KVSHARE_ASSIGN_OR_RETURN(p.query, View(where_, "Q", in[kQ], "q_num_heads", attributes_.query_heads));
    KVSHARE_ASSIGN_OR_RETURN(p.key, View(where_, "K", in[kK], "kv_num_heads", attributes_.kv_heads));
    KVSHARE_ASSIGN_OR_RETURN(p.value, View(where_, "V", in[kV], "kv_num_heads", attributes_.kv_heads));
    if (p.value.tokens != p.key.tokens)
      return InputError(where_, "V", fmt::format("has {} tokens (shape {})", p.value.tokens, in[kV].ShapeText()),
                        fmt::format("{} like 'K'", p.key.tokens));
    p.B = p.query.batch;
    p.S = p.query.tokens;
    if (in[kPastK]) {
      if (in[kNonpad])
        return InputError(where_, "nonpad_kv_seqlen", "is given together with 'past_key'", "one of them");
      KVSHARE_RETURN_IF_ERROR(CheckRank(where_, "past_key", in[kPastK], 4, "rank 4 [B, Hkv, P, D]"));
      KVSHARE_RETURN_IF_ERROR(CheckRank(where_, "past_value", in[kPastV], 4, "rank 4 [B, Hkv, P, Dv]"));
      KVSHARE_ASSIGN_OR_RETURN(p.past_key, View(where_, "past_key", in[kPastK], "kv_num_heads", p.key.heads));
      KVSHARE_ASSIGN_OR_RETURN(p.past_value, View(where_, "past_value", in[kPastV], "kv_num_heads", p.value.heads));
      KVSHARE_RETURN_IF_ERROR(CheckPast("past_key", in[kPastK], p.past_key, p.key, p.past_key.tokens));
      KVSHARE_RETURN_IF_ERROR(CheckPast("past_value", in[kPastV], p.past_value, p.value, p.past_key.tokens));
      p.past = p.past_key.tokens;
    }
    p.T = p.past + p.key.tokens;
    p.keys = in[kKeyMask].rank == 2 ? in[kKeyMask].dims[1] : p.T;
    if (in[kMask]) {
      KVSHARE_ASSIGN_OR_RETURN(p.mask, ViewMask(where_, in[kMask], {p.B, p.query.heads, p.S, p.T}, p.query.type));
    }
    return p;
  }

  Status CheckPast(const char* name, const Tensor& tensor, const HeadsView& past, const HeadsView& fresh,
                   int64_t tokens) const {
    if (past.batch == fresh.batch && past.head_size == fresh.head_size && past.tokens == tokens) return {};
    return InputError(where_, name, fmt::format("has shape {}", tensor.ShapeText()),
                      fmt::format("{}x{}x{}x{}", fresh.batch, fresh.heads, tokens, fresh.head_size));
  }

  // The causal triangle stands at the lower right with nonpad_kv_seqlen, and without a past where lower_right_ asks for
  // it; else behind the past, which without a past is the top left.
  Result<Positions> PositionsOf(const Inputs& in, const Problem& p) const {
    Positions positions;
    const Tensor& nonpad = in[kNonpad];
    const bool lower_right = nonpad || (lower_right_ && !in[kPastK]);
    positions.query_position = lower_right ? Lengths::AtEnd() : Lengths::Same(p.past);
    if (nonpad) {
      if (nonpad.rank != 1 || nonpad.dims[0] != p.B)
        return InputError(where_, "nonpad_kv_seqlen", fmt::format("has shape {}", nonpad.ShapeText()),
                          fmt::format("[B] = [{}]", p.B));
      positions.length = static_cast<const int64_t*>(nonpad.data);
      positions.length.memory = backend_.memory;
      positions.length.bound = p.T;
    }
    for (int64_t b = 0; nonpad && positions.length.OnHost() && b < p.B; ++b)
      if (const int64_t length = positions.length.At(b); length < 0 || length > p.T)
        return InputError(where_, "nonpad_kv_seqlen", fmt::format("has nonpad_kv_seqlen[{}] = {}", b, length),
                          fmt::format("0 to {}, the tokens of 'K'", p.T));
    KVSHARE_RETURN_IF_ERROR(CheckKeyMask(in, p));
    return positions;
  }

  Status CheckKeyMask(const Inputs& in, const Problem& p) const {
    const Tensor& key_mask = in[kKeyMask];
    if (!key_mask) return {};
    if (in[kNonpad]) return InputError(where_, "nonpad_kv_seqlen", "is given together with 'key_mask'", "one of them");
    const bool shaped = key_mask.rank == 2 && key_mask.dims[0] == p.B && key_mask.dims[1] <= p.T;
    // Borrowed keys may have spare rows after those of the mask. What a past has is followed by new keys at once.
    if (!shaped || (in[kPastK] && key_mask.dims[1] != p.T))
      return InputError(where_, "key_mask", fmt::format("has shape {}", key_mask.ShapeText()),
                        fmt::format("{}x{}, [B, T] of the keys", p.B, p.T));
    if (p.S > key_mask.dims[1])
      return InputError(where_, "key_mask", fmt::format("has T = {} columns", key_mask.dims[1]),
                        fmt::format("at least S = {}: queries are the last columns", p.S));
    return {};
  }

  Status MakeOutputs(const CallContext& context, const Inputs& in, const Problem& p, Outputs* out) const {
    const std::array<int64_t, 4> y4 = {p.B, p.query.heads, p.S, p.value.head_size};
    const std::array<int64_t, 3> y3 = {p.B, p.S, p.query.heads * p.value.head_size};
    const std::array<int64_t, 4> key = {p.B, p.key.heads, p.T, p.key.head_size};
    const std::array<int64_t, 4> value = {p.B, p.value.heads, p.T, p.value.head_size};
    KVSHARE_ASSIGN_OR_RETURN(out->y,
                             context.Output(attention::kY, in[kQ].rank == 3 ? std::span<const int64_t>(y3) : y4));
    KVSHARE_ASSIGN_OR_RETURN(out->present_key, context.Output(attention::kPresentKey, key));
    KVSHARE_ASSIGN_OR_RETURN(out->present_value, context.Output(attention::kPresentValue, value));
    KVSHARE_ASSIGN_OR_RETURN(out->scores,
                             context.Output(attention::kScores, std::array{p.B, p.query.heads, p.S, p.keys}));
    return {};
  }

  AttentionCall ViewCall(const Inputs& in, const Problem& p, const Outputs& out) const {
    AttentionCall call;
    call.query = p.query;
    call.key = p.key;
    call.value = p.value;
    const Tensor& y = out.y;
    const DType type = y.CoreType();
    const int64_t Dv = p.value.head_size;
    call.output = in[kQ].rank == 3 ? MutableHeadsView::Bsnh(y.data, type, p.B, p.S, p.query.heads, Dv)
                                   : MutableHeadsView::Bnsh(y.data, type, p.B, p.query.heads, p.S, Dv);
    const double D = static_cast<double>(p.query.head_size);
    call.spec.scale = attributes_.scale ? double{*attributes_.scale} : 1.0 / std::sqrt(D);
    call.spec.softcap = attributes_.softcap;
    call.spec.window_left = attributes_.window > 0 ? attributes_.window - 1 : attributes_.window_left;
    // A key mask numbers positions, and with them comes causality: it stands for the exporters' whole mask.
    call.spec.window_right = attributes_.causal || in[kKeyMask] ? 0 : attributes_.window_right;
    call.mask = p.mask;
    if (out.scores) call.scores = {out.scores.data, type, kScoreStages[attributes_.scores], p.keys};
    if (in[kKeyMask]) {
      call.key_mask = {in[kKeyMask].data, in[kKeyMask].CoreType(), p.keys};
      call.key.tokens = call.value.tokens = p.keys;
    }
    return call;
  }

  // Past rows, then new ones, in `present`; without a present in scratch if they are `joined`, else an empty call.
  static Result<AppendCall> Join(const HeadsView& past, const HeadsView& fresh, const Tensor& present, bool joined,
                                 const Problem& p, CallMemory& memory) {
    AppendCall call;
    if (!present && !joined) return call;
    void* data = present.data;
    if (!present) {
      KVSHARE_ASSIGN_OR_RETURN(
          data,
          memory.Take(static_cast<size_t>(fresh.batch * fresh.heads * p.T * fresh.head_size) * SizeOf(fresh.type)));
    }
    if (past.tokens > 0) call.past = past;
    call.fresh = fresh;
    call.present = MutableHeadsView::Bnsh(data, fresh.type, fresh.batch, fresh.heads, p.T, fresh.head_size);
    call.past_length = Lengths::Same(p.past);
    return call;
  }

  std::string where_;
  Attributes attributes_;
  size_t inputs_;
  bool lower_right_;
  const Backend& backend_;
  NodeStats& stats_;
  Scratch scratch_;
};

}  // namespace

Result<std::unique_ptr<Kernel>> CreateAttention(const OpBinding& binding, const NodeInfo& node) {
  auto kernel = std::make_unique<Attention>(binding, node);
  KVSHARE_RETURN_IF_ERROR(CheckAttributes(kernel->where(), kernel->attributes()));
  KVSHARE_RETURN_IF_ERROR(CheckMaskType(kernel->where(), node.InputType(kMask)));
  KVSHARE_RETURN_IF_ERROR(CheckKeyMaskType(kernel->where(), node.InputType(kKeyMask)));
  KVSHARE_RETURN_IF_ERROR(binding.backend->prepare());
  return std::unique_ptr<Kernel>(std::move(kernel));
}

Status InferAttention(const InferContext& context) {
  using Extent = InferContext::Extent;
  const int query_rank = context.Rank(kQ);
  const int value_rank = context.Rank(kV);
  if ((query_rank != 3 && query_rank != 4) || (value_rank != 3 && value_rank != 4)) return {};
  const auto heads_of = [&](const char* attribute) {  // 0 where not known; kernels refuse what is no number of heads
    const int64_t heads = context.Int(attribute, 0);
    return IsHeads(heads) ? heads : 0;
  };
  const int64_t Hq = heads_of("q_num_heads");
  const int64_t Hkv = heads_of("kv_num_heads");
  // The head size of K or V: its last extent, or the share of one head of it.
  const auto head_size = [&](size_t input, int rank) -> Extent {
    if (rank == 4) return {.input = static_cast<int>(input), .axis = 3};
    const int64_t width = context.Dim(input, 2);
    return width >= 0 && Hkv > 0 ? Extent{.value = width / Hkv} : Extent{};
  };
  const Extent Dv = head_size(kV, value_rank);
  const int64_t Dv_value = Dv.input >= 0 ? context.Dim(kV, 3) : Dv.value;
  const Extent batch = {.input = kQ, .axis = 0};
  const Extent y4[] = {batch, {.input = kQ, .axis = 1}, {.input = kQ, .axis = 2}, Dv};
  int64_t width = -1;
  if (Hq == 0 || Dv_value < 0 || __builtin_mul_overflow(Hq, Dv_value, &width)) width = -1;
  const Extent y3[] = {batch, {.input = kQ, .axis = 1}, {.value = width}};
  KVSHARE_RETURN_IF_ERROR(context.SetOutput(
      0, context.Type(kQ), query_rank == 3 ? std::span<const Extent>(y3) : std::span<const Extent>(y4)));
  const int key_rank = context.Rank(kK);
  if (!context.all_outputs() || (key_rank != 3 && key_rank != 4)) return {};
  const auto heads = [&](size_t input, int rank) -> Extent {
    return rank == 4 ? Extent{.input = static_cast<int>(input), .axis = 1} : Extent{.value = Hkv > 0 ? Hkv : -1};
  };
  const Extent key[] = {batch, heads(kK, key_rank), {}, head_size(kK, key_rank)};
  const Extent value[] = {batch, heads(kV, value_rank), {}, Dv};
  KVSHARE_RETURN_IF_ERROR(context.SetOutput(1, context.Type(kK), key));
  return context.SetOutput(2, context.Type(kV), value);
}

}  // namespace kvshare::ort
