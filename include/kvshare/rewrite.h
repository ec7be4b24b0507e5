// The graph tool as a library: what attention a model holds, and how to turn it into kvshare's, or upstream's, form.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvshare/status.h"

namespace kvshare {

enum class LayerKind { kOwn, kShared };
enum class LayerForm { kGroupQueryAttention, kAttention };

// One attention layer as found in the graph, in graph order.
struct AttentionLayer {
  int index = 0;       // order of execution, from 0
  std::string node;    // node name, or "#<position>" where it has none
  std::string place;   // "": the main graph; else e.g. "then_branch of If 'x'" or "function 'f'"
  std::string domain;  // "", "com.microsoft", "kvshare"
  LayerForm form = LayerForm::kGroupQueryAttention;
  LayerKind kind = LayerKind::kOwn;
  int source = -1;           // kShared: index of the layer whose K/V it borrows; -1: a graph input
  std::string source_key;    // kShared: the borrowed key value's name
  int64_t window = -1;       // keys with the query's own; -1: full
  bool window_known = true;  // false: a mask that is not understood may hide more
  int64_t query_heads = 0;
  int64_t kv_heads = 0;               // as they are made, before the graph repeats them
  int64_t expansion = 1;              // how often the graph copies each key-value head before the node (repeat_kv)
  int64_t head_size = 0;              // 0: not known from the graph
  std::string past_key;               // kOwn: the cache it takes
  std::string past_value;             //
  std::string seqlens_k;              // what tells the number of keys: GroupQueryAttention has
  std::string total_sequence_length;  // these two,
  std::string nonpad_kv_seqlen;       // Attention has this one
  bool window_sized = false;          // that cache holds no more than the window (sliding_window_cache)
  int64_t cache_rows = 0;             // kOwn: rows that its cache keeps (window_cache_rows, static); 0: one a token
  int64_t row_bytes = 0;  // kOwn: of a row of its cache, key and value of one sequence; 0: no cache, or not known
  std::string written;    // its form, e.g. "own Attention, caches joined by Concat"
  std::string note;       // what is odd about it, if anything
};

// Where the CUDA provider of a release of ONNX Runtime would run the nodes, and what it would copy between GPU and
// host: predicted from a table of that release's kernels. Constants are folded and count nowhere.
struct CudaPlacement {
  std::string release;  // "1.29"
  int64_t cuda_nodes = 0;
  int64_t cpu_nodes = 0;
  int64_t unknown_nodes = 0;                  // not in the table: copies beside them are not counted
  int64_t attention_on_cpu = 0;               // attention and mask nodes among cpu_nodes
  int64_t copies = 0;                         // Memcpy nodes that the session would add
  std::vector<std::string> attention_copies;  // the values, of them, that an attention or mask node makes or reads
  std::vector<std::string> notes;             // why nodes are not on the GPU, one line a reason; what the table lacks
};

// Tokens of the sequence whose caches are counted in bytes.
inline constexpr int64_t kCacheTokens = 32768;

// A cache that holds at every step what an earlier one does, where the caller begins with caches that are alike.
struct EqualCache {
  std::string past;     // graph input
  std::string present;  // graph output that hands it on
  std::string of;       // the earlier one's input
  int64_t bytes = 0;    // of one sequence of kCacheTokens; 0: not known
};

struct Inspection {
  // Bytes for one sequence of kCacheTokens: of the caches of all own layers, and of the caches in `equal_caches`.
  int64_t CacheBytes() const;
  int64_t EqualCacheBytes() const;

  std::vector<AttentionLayer> layers;
  int64_t nodes = 0;                     // of the main graph and of bodies
  int64_t mask_nodes = 0;                // CumSum, GreaterOrEqual, Less, And, Where, ... that feed attention
  int64_t borrowed_copies = 0;           // Transpose/Reshape on borrowed K/V
  int64_t repeat_nodes = 0;              // Unsqueeze/Expand/Reshape that copy key-value heads
  int64_t unfused_layers = 0;            // attention by MatMul and Softmax, which is in no list above
  int64_t named_unused_presents = 0;     // presents that ORT copies for nobody
  std::vector<EqualCache> equal_caches;  // that the model could do without
  std::string producer;                  // which exporter wrote the model, "" where it does not say
  std::vector<std::string> imports;      // the domains of the opsets that the model imports; "" is ai.onnx
  std::vector<int64_t> opsets;           // the version of each
  std::vector<std::string> warnings;     // one line each, e.g. the is_causal trap of ORT >= 1.28
  std::optional<CudaPlacement> cuda;     // where InspectOptions ask for it
};

struct InspectOptions {
  std::string cuda;  // a release of ONNX Runtime, "1.29": CudaPlacement by it; "": none
};

enum class Target { kKvshare, kKvshareAttention, kOrt, kOnnx25 };
inline constexpr std::array<std::pair<std::string_view, Target>, 4> kTargets = {
    {{"kvshare", Target::kKvshare},
     {"kvshare-attention", Target::kKvshareAttention},
     {"ort", Target::kOrt},
     {"onnx25", Target::kOnnx25}}};

enum class Rope { kFold, kKeep };
inline constexpr std::array<std::pair<std::string_view, Rope>, 2> kRopes = {
    {{"fold", Rope::kFold}, {"keep", Rope::kKeep}}};

// Attention, kvshare's and ai.onnx's, takes a query that the graph has rotated.
constexpr Rope DefaultRope(Target target) {
  return target == Target::kKvshareAttention || target == Target::kOnnx25 ? Rope::kKeep : Rope::kFold;
}

enum class CacheType { kInt8, kInt4, kFp8, kBf16, kFp16 };
inline constexpr std::array<std::pair<std::string_view, CacheType>, 5> kCacheTypes = {{{"int8", CacheType::kInt8},
                                                                                       {"int4", CacheType::kInt4},
                                                                                       {"fp8", CacheType::kFp8},
                                                                                       {"bf16", CacheType::kBf16},
                                                                                       {"fp16", CacheType::kFp16}}};

// Caches of another element type. A code of int8, int4 (two in a uint8) and fp8 (float8e4m3fn) means code * scale; each
// key-value head's channel has a scale, or each cache one.
struct KvCache {
  CacheType type = CacheType::kInt8;
  bool scale_per_tensor = false;
  // For caches of codes, by graph output: the largest magnitude of each of a present's Hkv * D channels (Calibrate).
  // int8 represents 1.5 times as much, fp8 twice, int4 as much; values beyond are clamped. Without any, fp8 takes scale
  // 1, and the integers are refused.
  std::map<std::string, std::vector<float>> largest = {};
};

struct RewriteOptions {
  Target target = Target::kKvshare;
  bool keep_own = false;          // leave own layers as they are, GroupQueryAttention or Attention
  std::optional<Rope> rope;       // none: the target's default
  std::string min_ort = "1.31";   // kOrt: oldest ONNX Runtime that must load the result
  std::vector<std::string> skip;  // rule names not to run
  // kKvshare: caches of own layers with a window of W keys hold W plus so many rows. None: a row for each token.
  std::optional<int64_t> window_caches = {};
  std::optional<KvCache> kv_cache = {};  // kKvshare: what the caches of own layers hold. None: what they did
  bool fast_prefill = false;  // behind the last own keys only each sequence's last token: logits are [B, 1, V]
  bool prune_inputs = false;  // drop graph inputs that nothing reads any more
  std::string weights_name;   // "": weights keep their names; else that of the written model's (a folder of several)
  bool link_weights = false;  // weights in another folder: hard-link, which shares them with the original for good
  bool dry_run = false;       // report only

  // Called as weights are copied to another folder: bytes of one file so far, and in all.
  std::function<void(uint64_t done, uint64_t bytes)> progress = {};
};

struct RuleOutcome {
  std::string rule;
  std::string node;
  bool applied = false;
  std::string reason;  // why it declined, for people
  std::string code;    // the same for programs, e.g. "mask-unknown": src/graph/match/decline_codes.inc lists them
};

// How much smaller one rule made counts of Inspection; below 0: larger. Removed nodes count for rule dead-nodes.
struct RuleSaving {
  std::string rule;
  int64_t nodes = 0;
  int64_t mask_nodes = 0;
  int64_t copies = 0;       // borrowed_copies and repeat_nodes
  int64_t presents = 0;     // named_unused_presents
  int64_t cache_bytes = 0;  // of one sequence of kCacheTokens
};

struct RewriteReport {
  Inspection before;
  Inspection after;
  std::vector<RuleOutcome> outcomes;
  std::vector<RuleSaving> savings;  // of the rules that changed something, in order
  std::vector<std::string> notes;   // what the reader must know, e.g. a changed contract for ragged batches
  bool changed = false;
};

// Reads the model's structure (external data stays untouched) and describes its attention.
// Errors: kInvalidInput for a missing, malformed or cyclic model, external data that leaves its folder, or a release
// whose CUDA kernels are not known.
Result<Inspection> Inspect(const std::string& model_path, const InspectOptions& options = {});

// Rewrites `model_path` into `out_path`, atomically: `out_path` is complete or absent. Weights beside the model are
// referred to where both lie in one folder, else copied, which takes no room where the file system shares blocks. A
// file that is replaced hands its permissions on; a link that is replaced becomes a file. Errors as Inspect; kRefused
// for a target that cannot serve the options, and where another file has the name of the weights; kInternal for I/O. A
// message names an option as "option 'min_ort' = '1.27'"; a face spells it its own way (report/report.h).
Result<RewriteReport> Rewrite(const std::string& model_path, const std::string& out_path,
                              const RewriteOptions& options);

// A cache of codes, [B, kv_heads, rows, head_size], and what stands for it in the model's twin.
struct TwinCache {
  std::string past;           // graph input and
  std::string present;        // graph output: codes in the model, floats in the twin
  std::string read;           // input of the twin alone: what all layers read as this present, in floats
  std::vector<float> scales;  // what code 1 means: one number, or one for each head's channel
  int64_t kv_heads = 0;
  int64_t head_size = 0;
};

// A model whose caches hold codes, once more with caches of floats. Its layers append rows as they are, and read what
// the caller gives: what the model's codes mean.
struct FloatTwin {
  std::string model;      // a ModelProto, whose weights in files lie where the model's do
  std::string unrounded;  // another: caches of floats again, but layers read the very rows that they append
  std::vector<TwinCache> caches;
};

// Nothing where no cache of the model holds codes. Errors as Inspect; kRefused for a layer that has no such twin.
Result<std::optional<FloatTwin>> MakeFloatTwin(const std::string& model_path);

}  // namespace kvshare
