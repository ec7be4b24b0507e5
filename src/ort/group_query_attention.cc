#include "ort/group_query_attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/half.h"
#include "kvshare/call.h"
#include "ort/call_exec.h"
#include "ort/gqa_call.h"
#include "ort/scratch.h"
#include "ort/stats.h"

namespace kvshare::ort {
namespace {

// "NONE", "PER_TENSOR" or "PER_CHANNEL", in any case as ONNX Runtime takes them; nothing for another word.
std::optional<QuantType> ParseQuantType(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::toupper(c); });
  if (text.empty() || text == "NONE") return QuantType::kNone;
  if (text == "PER_TENSOR") return QuantType::kPerTensor;
  if (text == "PER_CHANNEL") return QuantType::kPerChannel;
  return std::nullopt;
}

// The element type of past and present. uint8 is int4 in pairs.
Result<DType> CacheType(std::string_view where, const NodeInfo& node, const OpBinding& binding) {
  const int64_t bits = node.Int("kv_cache_bit_width").value_or(0);
  if (binding.cache == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8) {
    if (bits == 4) return DType::kI4;
    return Status::InvalidInput(
        fmt::format("{}: attribute 'kv_cache_bit_width' is {}; needs 4 for a cache of uint8", where, bits));
  }
  const auto type = DTypeOf(binding.cache);
  if (!type)
    return Status::Refused(
        fmt::format("{}: no kernel for a cache of {}; have f32, f16, bf16, int8, uint8 (two int4), "
                    "float8e4m3fn",
                    where, NameOf(binding.cache)));
  const int64_t want = IsQuantized(*type) ? 8 : 0;
  if (bits != 0 && bits != want)
    return Status::InvalidInput(fmt::format("{}: attribute 'kv_cache_bit_width' is {}; needs {} for a cache of {}",
                                            where, bits, want, kvshare::NameOf(*type)));
  return *type;
}

Result<GqaAttributes> ReadAttributes(std::string_view where, const NodeInfo& node, const OpBinding& binding) {
  GqaAttributes a;
  KVSHARE_ASSIGN_OR_RETURN(a.cache, CacheType(where, node, binding));
  for (const auto& [name, type] : {std::pair{"k_quant_type", &a.key_quant}, {"v_quant_type", &a.value_quant}}) {
    const std::string text = node.String(name).value_or("");
    const auto parsed = ParseQuantType(text);
    if (!parsed)
      return Status::InvalidInput(
          fmt::format("{}: attribute '{}' is '{}'; needs NONE, PER_TENSOR or PER_CHANNEL", where, name, text));
    *type = *parsed;
  }
  a.window_sized_cache = node.IsOn("sliding_window_cache");
  if (std::string_view(binding.domain) == "kvshare") a.cache_rows = node.Int("window_cache_rows").value_or(0);
  const float epsilon = node.Float("qk_norm_epsilon").value_or(1e-6F);
  a.query_epsilon = node.Float("q_norm_epsilon").value_or(epsilon);
  a.key_epsilon = node.Float("k_norm_epsilon").value_or(epsilon);
  a.query_heads = node.Int("num_heads").value_or(0);
  a.kv_heads = node.Int("kv_num_heads").value_or(0);
  a.scale = node.Float("scale").value_or(0);
  a.softcap = node.Softcap();
  a.window = node.Int("local_window_size").value_or(-1);
  const int64_t causal = node.Int("causal").value_or(1);
  if (causal != 0 && causal != 1)
    return Status::InvalidInput(fmt::format("{}: attribute 'causal' is {}; needs 0 or 1", where, causal));
  a.causal = causal == 1;
  a.rotary = node.IsOn("do_rotary");
  a.interleaved = node.IsOn("rotary_interleaved");
  a.qk_output = node.Int("qk_output").value_or(0);
  a.smooth_softmax = node.IsOn("smooth_softmax");
  return a;
}

// Heads [first, first + heads) of a [B, S, all*D] tensor.
HeadsView Folded(const Tensor& tensor, int64_t all, int64_t first, int64_t heads, int64_t D) {
  const int64_t B = tensor.dims[0];
  const int64_t S = tensor.dims[1];
  return {At(static_cast<const void*>(tensor.data), tensor.CoreType(), first * D),
          tensor.CoreType(),
          B,
          heads,
          S,
          D,
          S * all * D,
          D,
          all * D};
}

class GroupQueryAttention final : public Kernel {
 public:
  GroupQueryAttention(const OpBinding& binding, const NodeInfo& node, std::string where,
                      const GqaAttributes& attributes)
      : where_(std::move(where)),
        attributes_(attributes),
        inputs_(std::min<size_t>(node.InputCount(), kInputs)),
        backend_(*binding.backend),
        stats_(StatsOf(binding.domain, binding.op, node.Name())) {}

  Status Run(CallContext& context) override {
    KVSHARE_ASSIGN_OR_RETURN(const GqaInputs in, context.Inputs<kInputs>(inputs_));
    KVSHARE_ASSIGN_OR_RETURN(const GqaShape shape, CheckGqaInputs(where_, attributes_, in));
    KVSHARE_ASSIGN_OR_RETURN(const GqaRules rules, GqaRulesOf(where_, attributes_, in, shape, backend_.memory));

    const std::array<int64_t, 3> output_dims = {shape.B, shape.S, shape.Hq * shape.D};
    KVSHARE_ASSIGN_OR_RETURN(const Tensor output, context.Output(gqa::kOutput, output_dims));
    KVSHARE_ASSIGN_OR_RETURN(const Tensor present_key, Present(context, gqa::kPresentKey, shape));
    KVSHARE_ASSIGN_OR_RETURN(const Tensor present_value, Present(context, gqa::kPresentValue, shape));
    if (bool(present_key) != bool(present_value))
      return Status::InvalidInput(fmt::format("{}: output '{}' is absent while '{}' is named; needs both or neither",
                                              where_, present_key ? "present_value" : "present_key",
                                              present_key ? "present_key" : "present_value"));
    KVSHARE_ASSIGN_OR_RETURN(const Tensor scores,
                             context.Output(gqa::kOutputQk, std::array{shape.B, shape.Hq, shape.S, shape.total}));
    CallExec call_exec(context, backend_, in[kQuery], where_);
    KVSHARE_RETURN_IF_ERROR(call_exec.Begin());
    Exec& exec = *call_exec;
    if (shape.B == 0) return Done(exec);

    AttentionCall call = View(in, shape, rules, output);
    if (scores) {
      const ScoreStage stage = attributes_.qk_output == 1 ? ScoreStage::kMasked : ScoreStage::kWeights;
      call.scores = {scores.data, scores.CoreType(), stage, shape.total, /*outside=*/0};
    }

    Fills fills;
    KVSHARE_RETURN_IF_ERROR(PlanFills(in, shape, rules, present_key, present_value, exec.memory, fills));
    for (size_t i = 0; i < fills.count; i += 2)
      KVSHARE_RETURN_IF_ERROR(CheckAppend(fills.calls[i], fills.calls[i + 1], where_,
                                          shape.form == KvForm::kExternal ? "external" : "past"));
    if (shape.Appends()) {
      call.key = Const(fills.calls[0].present);
      call.value = Const(fills.calls[1].present);
    }
    if (shape.S > 0) KVSHARE_RETURN_IF_ERROR(CheckAttention(call, where_));

    for (const AppendCall& fill : fills.All())  // a borrowed cache bound onto its present is there already
      if (shape.Appends() || fill.present.data != fill.past.data) KVSHARE_RETURN_IF_ERROR(backend_.append(fill, exec));
    if (attributes_.window == 0) {  // no key is visible; ONNX Runtime gives zeros. An empty tensor has no memory
      for (const Tensor& zeros : {output, scores})
        if (zeros && zeros.Count() > 0)
          KVSHARE_RETURN_IF_ERROR(
              backend_.clear(zeros.data, static_cast<size_t>(BytesOf(zeros.CoreType(), zeros.Count())), exec));
    } else if (shape.S > 0) {
      KVSHARE_RETURN_IF_ERROR(backend_.attend(call, exec));
    }
    return Done(exec);
  }

 private:
  // A bound window-sized cache has room for short chunks only. For a longer one ONNX Runtime's error names neither the
  // rows nor the chunk, so this one does.
  Result<Tensor> Present(CallContext& context, size_t output, const GqaShape& shape) const {
    auto present = context.Output(output, std::array{shape.B, shape.Hkv, shape.capacity, shape.width});
    const int64_t rows = attributes_.cache_rows;
    const int64_t most = rows - attributes_.window + 1;
    if (present.ok() || rows == 0 || !shape.Appends()) return present;
    return Status::InvalidInput(fmt::format(
        "{}: output '{}' is bound and has another shape than {} rows for a chunk of {} tokens; needs "
        "window_cache_rows = {} rows and chunks of at most window_cache_rows - local_window_size + 1 = {}, "
        "or no binding",
        where_, output == gqa::kPresentKey ? "present_key" : "present_value", shape.capacity, shape.S, rows, most));
  }

  // The caches that a call fills, in order, in pairs of a key's and its value's; the keys that it looks at first.
  struct Fills {
    std::array<AppendCall, 4> calls;
    size_t count = 0;

    std::span<const AppendCall> All() const { return {calls.data(), count}; }
  };

  // Staged rows, and rows without a present, go to scratch. They go first: the present may overwrite the past.
  Status PlanFills(const GqaInputs& in, const GqaShape& shape, const GqaRules& rules, const Tensor& present_key,
                   const Tensor& present_value, CallMemory& memory, Fills& fills) {
    if (shape.Appends() && (rules.Staged() || !present_key)) {
      const int64_t rows = rules.Staged() ? rules.stage_rows : shape.capacity;
      const int64_t cache_bytes =
          BytesOf(attributes_.cache, shape.B * shape.Hkv * rows * RowElements(attributes_.cache, shape.D));
      KVSHARE_ASSIGN_OR_RETURN(void* const scratch, memory.Take(static_cast<size_t>(2 * cache_bytes)));
      auto* const data = static_cast<std::byte*>(scratch);
      for (const bool key : {true, false}) {
        AppendCall& fill = fills.calls[fills.count++];
        fill = ViewAppend(in, shape, rules, key, key ? data : data + cache_bytes, rows);
        fill.cache.staged = rules.Staged();
      }
    }
    if (!present_key) return {};
    for (const bool key : {true, false})
      fills.calls[fills.count++] =
          ViewAppend(in, shape, rules, key, (key ? present_key : present_value).data, shape.capacity);
    return {};
  }

  Status Done(const Exec& exec) {
    stats_.Ran(exec.kernel);
    return {};
  }

  RotaryView Rotary(const GqaInputs& in) const {
    if (!attributes_.rotary) return {};
    return {in[kCosCache].data,    in[kSinCache].data,    in[kCosCache].CoreType(),
            in[kCosCache].dims[0], in[kCosCache].dims[1], attributes_.interleaved};
  }

  // Everything but the keys of a form that appends.
  AttentionCall View(const GqaInputs& in, const GqaShape& shape, const GqaRules& rules, const Tensor& output) const {
    AttentionCall call;
    const int64_t all = shape.form == KvForm::kPacked ? shape.Hq + 2 * shape.Hkv : shape.Hq;
    call.query = Folded(in[kQuery], all, 0, shape.Hq, shape.D);
    if (!shape.Appends()) {
      call.key = Past(in, shape, /*key=*/true);
      call.value = Past(in, shape, /*key=*/false);
    }
    call.norm = Norm(in[kQNormWeight], attributes_.query_epsilon);
    call.rotary = Rotary(in);
    call.output = MutableHeadsView::Bsnh(output.data, output.CoreType(), shape.B, shape.S, shape.Hq, shape.D);
    call.spec.scale = attributes_.scale != 0 ? attributes_.scale : 1.0F / std::sqrt(static_cast<float>(shape.D));
    call.spec.softcap = attributes_.softcap;
    call.spec.window_left = attributes_.window > 0 ? attributes_.window - 1 : kUnlimited;
    call.spec.window_right = attributes_.causal ? 0 : kUnlimited;
    call.spec.smooth_softmax = attributes_.smooth_softmax;
    if (in[kHeadSink]) {
      call.spec.head_sink = in[kHeadSink].data;
      call.spec.head_sink_type = in[kHeadSink].CoreType();
    }
    call.positions = rules.positions;
    call.rotary_positions = rules.rotary;
    if (const Tensor& bias = in[kAttentionBias]) {
      const int64_t row = shape.S * shape.total;
      call.mask = {bias.data,
                   bias.CoreType(),
                   bias.dims[0] == 1 ? 0 : bias.dims[1] * row,
                   bias.dims[1] == 1 ? 0 : row,
                   shape.total,
                   1,
                   shape.total};
    }
    return call;
  }

  static NormView Norm(const Tensor& weight, float epsilon) {
    if (!weight) return {};
    return {weight.data, weight.CoreType(), epsilon};
  }

  Quant QuantOf(const GqaInputs& in, bool key) const {
    const QuantType type = key ? attributes_.key_quant : attributes_.value_quant;
    if (type == QuantType::kNone) return {};
    return {static_cast<const float*>(in[key ? kKScale : kVScale].data), type == QuantType::kPerChannel};
  }

  // The past, or the external pair, of a complete form.
  HeadsView Past(const GqaInputs& in, const GqaShape& shape, bool key) const {
    const Tensor& past =
        shape.form == KvForm::kExternal ? in[key ? kExternalKey : kExternalValue] : in[key ? kPastKey : kPastValue];
    if (!past || past.dims[2] == 0) return {};
    HeadsView view = HeadsView::Bnsh(past.data, attributes_.cache, shape.B, shape.Hkv, past.dims[2], shape.D);
    view.quant = QuantOf(in, key);
    return view;
  }

  // New rows into a cache of `rows` rows; where nothing is new, past (or the borrowed pair) passed through.
  AppendCall ViewAppend(const GqaInputs& in, const GqaShape& shape, const GqaRules& rules, bool key, void* present,
                        int64_t rows) const {
    AppendCall call;
    call.past = Past(in, shape, key);
    call.present = MutableHeadsView::Bnsh(present, attributes_.cache, shape.B, shape.Hkv, rows, shape.D);
    call.present.quant = QuantOf(in, key);
    call.past_length = rules.positions.query_position;
    call.fresh_length = rules.positions.query_length;
    call.length = rules.positions.length;
    call.cache = rules.positions.cache;
    call.cache.staged = false;
    if (rules.skip) {
      call.past_length = rules.past_length;
      call.skip = rules.skip;
    }
    if (!shape.Appends()) {
      call.skip = {};
      call.fresh = call.past;
      call.fresh.tokens = 0;
      call.past_length = Lengths::AtEnd();
      call.fresh_length = Lengths::Same(0);
      return call;
    }
    call.fresh = shape.form == KvForm::kPacked ? Folded(in[kQuery], shape.Hq + 2 * shape.Hkv,
                                                        shape.Hq + (key ? 0 : shape.Hkv), shape.Hkv, shape.D)
                                               : Folded(in[key ? kKey : kValue], shape.Hkv, 0, shape.Hkv, shape.D);
    if (!key) return call;
    call.norm = Norm(in[kKNormWeight], attributes_.key_epsilon);
    call.rotary = Rotary(in);
    call.rotary_positions = rules.rotary;
    return call;
  }

  std::string where_;
  GqaAttributes attributes_;
  size_t inputs_;
  const Backend& backend_;
  NodeStats& stats_;
  Scratch scratch_;
};

}  // namespace

Result<std::unique_ptr<Kernel>> CreateGqa(const OpBinding& binding, const NodeInfo& node) {
  const std::string where = fmt::format("{} '{}'", binding.op, node.Name());
  KVSHARE_ASSIGN_OR_RETURN(const GqaAttributes attributes, ReadAttributes(where, node, binding));
  const bool drop_in = std::string_view(binding.domain) != "kvshare";
  KVSHARE_RETURN_IF_ERROR(CheckGqaAttributes(where, attributes, /*zero_window_allowed=*/drop_in));
  if (attributes.cache_rows > 0 && binding.backend->memory == Memory::kDevice)
    return Status::Refused(
        fmt::format("{}: attribute 'window_cache_rows' is {}; needs 0: only the CPU's kernels have such "
                    "a cache",
                    where, attributes.cache_rows));
  if (node.HasOutput(gqa::kOutputQk) && attributes.qk_output == 0)
    return Status::InvalidInput(fmt::format(
        "{}: output 'output_qk' is named while attribute 'qk_output' is 0; needs qk_output = 1 or 2", where));
  KVSHARE_RETURN_IF_ERROR(binding.backend->prepare());
  return std::unique_ptr<Kernel>(std::make_unique<GroupQueryAttention>(binding, node, where, attributes));
}

Status InferGqa(const InferContext& context) {
  using Extent = InferContext::Extent;
  if (context.Rank(kQuery) != 3) return {};
  // An absent key (packed QKV) and one of unknown shape look alike here: the width stays open.
  const bool perhaps_packed = context.Rank(kKey) < 0 && context.Rank(kExternalKey) < 0;
  const Extent hidden = perhaps_packed ? Extent{} : Extent{.input = kQuery, .axis = 2};
  const int64_t Hkv = std::max<int64_t>(-1, context.Int("kv_num_heads", -1));
  const Extent output[] = {{.input = kQuery, .axis = 0}, {.input = kQuery, .axis = 1}, hidden};
  KVSHARE_RETURN_IF_ERROR(context.SetOutput(0, context.Type(kQuery), output));
  if (!context.all_outputs()) return {};
  const size_t cache = context.Rank(kExternalKey) == 4 ? kExternalKey : kPastKey;
  if (context.Rank(cache) != 4) return {};
  const Extent present[] = {
      {.input = kQuery, .axis = 0}, {.value = Hkv}, {}, {.input = static_cast<int>(cache), .axis = 3}};
  KVSHARE_RETURN_IF_ERROR(context.SetOutput(1, context.Type(cache), present));
  return context.SetOutput(2, context.Type(cache), present);
}

}  // namespace kvshare::ort
