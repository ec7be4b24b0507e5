#include "host/feeds.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <random>
#include <set>
#include <string_view>
#include <utility>

#include "core/half.h"
#include "graph/cache_names.h"

namespace kvshare::host {
namespace {

// Inputs that exporters agree on.
constexpr std::pair<std::string_view, Meaning> kKnown[] = {
    {"input_ids", {Role::kIds, "BS"}},
    {"decoder_input_ids", {Role::kIds, "BS"}},
    {"inputs_embeds", {Role::kEmbeddings, "BS"}},
    {"per_layer_inputs", {Role::kEmbeddings, "BS"}},
    {"attention_mask", {Role::kMask, "BT"}},
    {"encoder_attention_mask", {Role::kMask, "B?"}},
    {"position_ids", {Role::kPositions, "BS"}},
    {"cache_position", {Role::kPositions, "S"}},
    {"token_type_ids", {Role::kZeros, "BS"}},
    {"num_logits_to_keep", {Role::kZeros, ""}},
    {"logits_to_keep", {Role::kZeros, ""}},
    {"use_cache_branch", {Role::kHasPast, ""}},
    {"past_seq_len", {Role::kPast, ""}},
    {"past_sequence_length", {Role::kPast, ""}},
    {"total_seq_len", {Role::kTotal, ""}},
    {"total_sequence_length", {Role::kTotal, ""}},
    {"seqlens_k", {Role::kLast, "B"}},
};

bool Contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

// The axes of an input of `rank`, "?" for each axis more; nothing where the input has another form.
std::string AxesOf(const Meaning& meaning, size_t rank) {
  std::string axes(meaning.axes);
  if (rank < axes.size()) return "";
  const std::string more(rank - axes.size(), '?');
  if (meaning.role == Role::kPositions) return more + axes;  // three positions a token: [3, B, S]
  const bool may_follow = meaning.role == Role::kEmbeddings || meaning.role == Role::kLast || axes.empty();
  return may_follow || more.empty() ? axes + more : "";
}

Axis::Kind KindOf(char letter) {
  switch (letter) {
    case 'B': return Axis::Kind::kBatch;
    case 'S': return Axis::Kind::kTokens;
    default: return Axis::Kind::kTotal;
  }
}

uint64_t PhysicalMemory() {
  return static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

Result<Tensor> ZerosOf(const ValueInfo& input, std::vector<int64_t> shape) {
  const auto bytes = BytesOf(input.type, shape);
  if (!bytes.ok()) return Status::Refused(fmt::format("input '{}': {}", input.name, bytes.status().message()));
  // Linux grants more memory than there is, and kills the process that uses it.
  if (*bytes > PhysicalMemory())
    return Status::Refused(fmt::format("input '{}': shape {} takes {} bytes; needs at most {}, this machine's memory",
                                       input.name, ShapeText(shape), *bytes, PhysicalMemory()));
  return Tensor::Zeros(input.type, std::move(shape));
}

bool IsInteger(DType type) { return type == DType::kI32 || type == DType::kI64; }
bool IsCode(DType type) { return type == DType::kI8 || type == DType::kI4; }

// A stream of its own for each input, so that two models that share one input get the same numbers for it.
std::mt19937_64 RandomOf(uint64_t seed, const std::string& name, int64_t past) {
  std::vector<uint32_t> all(name.begin(), name.end());
  for (const uint64_t number : {seed, static_cast<uint64_t>(past)}) {
    all.push_back(static_cast<uint32_t>(number));
    all.push_back(static_cast<uint32_t>(number >> 32));
  }
  std::seed_seq sequence(all.begin(), all.end());
  return std::mt19937_64(sequence);  // its numbers are the same on every machine; a distribution's are not
}

// Multiples of 1/128 in [-1, 1].
void FillFloats(std::mt19937_64& random, Tensor& tensor) {
  for (int64_t i = 0; i < tensor.Elements(); ++i)
    StoreElement(tensor.data.data(), tensor.type, i, (static_cast<double>(random() % 257) - 128) / 128);
}

// For an input whose meaning no rule knows: random floats and codes, integers 0, booleans true.
void Invent(std::mt19937_64& random, Tensor& tensor) {
  if (tensor.type == DType::kBool) return std::fill(tensor.data.begin(), tensor.data.end(), std::byte{1});
  if (IsInteger(tensor.type)) return;
  if (!IsCode(tensor.type)) return FillFloats(random, tensor);
  for (std::byte& code : tensor.data) code = static_cast<std::byte>(random() & 0xFF);
}

// The element at `column` of the last axis of an input that counts tokens.
int64_t CountAt(Role role, const Step& step, int64_t column) {
  switch (role) {
    case Role::kMask: return column < step.total() ? 1 : 0;
    case Role::kPositions: return step.past + column;
    case Role::kPast: return step.past;
    case Role::kTotal: return step.total();
    case Role::kLast: return step.total() - 1;
    case Role::kHasPast: return step.past > 0 ? 1 : 0;
    default: return 0;
  }
}

void Count(const Feed& feed, const Step& step, Tensor& tensor) {
  const int64_t columns = tensor.shape.empty() ? 1 : tensor.shape.back();
  std::vector<int64_t> values(static_cast<size_t>(tensor.Elements()));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = CountAt(feed.role, step, static_cast<int64_t>(i) % std::max<int64_t>(columns, 1));
  tensor = Tensor::Integers(tensor.type, tensor.shape, values);
}

// What is wrong with the shape of `given`.
Status CheckShape(const Feed& feed, const Step& step, const Tensor& given) {
  const std::vector<int64_t> shape = feed.ShapeAt(step);
  bool fits = given.shape.size() == shape.size();
  std::vector<std::string> wanted;
  for (size_t i = 0; i < shape.size(); ++i) {
    wanted.push_back(feed.axes[i].is_made_up ? "any" : fmt::format("{}", shape[i]));
    fits = fits && (feed.axes[i].is_made_up || given.shape[i] == shape[i]);
  }
  if (fits) return {};
  return Status::InvalidInput(fmt::format("input '{}' is given with shape {}; needs [{}]", feed.input.name,
                                          ShapeText(given.shape), fmt::join(wanted, ", ")));
}

// `given` in the type that the model takes: ids are int32 or int64, floats f32, f16 or bf16.
Result<Tensor> As(const ValueInfo& input, const Tensor& given) {
  const DType type = input.type;
  if (type == given.type) return given;
  if (IsInteger(type) || type == DType::kBool) {
    if (IsFloat(given.type))
      return Status::InvalidInput(
          fmt::format("input '{}' is given as {}; needs {}", input.name, NameOf(given.type), NameOf(type)));
    std::vector<int64_t> values(static_cast<size_t>(given.Elements()));
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<int64_t>(given.At(static_cast<int64_t>(i)));
      if (type == DType::kI32 && !std::in_range<int32_t>(values[i]))
        return Status::InvalidInput(
            fmt::format("input '{}' is given with {}; needs numbers of int32", input.name, values[i]));
    }
    return Tensor::Integers(type, given.shape, values);
  }
  Tensor tensor = Tensor::Zeros(type, given.shape);
  for (int64_t i = 0; i < given.Elements(); ++i) StoreElement(tensor.data.data(), type, i, given.At(i));
  return tensor;
}

// Makes the feeds of one signature.
class Planner {
 public:
  Planner(const Signature& signature, const KnownInputs& known) : signature_(signature), known_(known) {}

  Result<std::vector<Feed>> Plan() {
    std::vector<Feed> feeds;
    // First those that give names their meaning.
    for (const ValueInfo& input : signature_.inputs) LearnNames(input);
    for (const ValueInfo& input : signature_.inputs) {
      KVSHARE_ASSIGN_OR_RETURN(Feed feed, PlanOf(input));
      feeds.push_back(std::move(feed));
    }
    for (const auto& [name, extent] : known_.named)
      if (!used_.contains(name))
        return Status::Refused(
            fmt::format("option 'extent': no input has an extent '{}' that is to be told; {}", name, WhichAreOpen()));
    return feeds;
  }

  std::vector<std::string> invented() && { return std::move(invented_); }

 private:
  const Meaning* Find(const ValueInfo& input) const {
    const auto fits = [&](const Meaning& meaning) {
      return meaning.axes.empty() || !AxesOf(meaning, input.shape.size()).empty();
    };
    for (const auto& [name, meaning] : kKnown)
      if (name == input.name && fits(meaning)) return &meaning;
    const auto found = known_.meanings.find(input.name);
    return found != known_.meanings.end() && fits(found->second) ? &found->second : nullptr;
  }

  void LearnNames(const ValueInfo& input) {
    const Meaning* known = Find(input);
    if (known == nullptr) return;
    const std::string axes = AxesOf(*known, input.shape.size());
    for (size_t i = 0; i < axes.size(); ++i)
      if (axes[i] != '?' && !input.symbols[i].empty()) meaning_.emplace(input.symbols[i], KindOf(axes[i]));
  }

  bool HasOutput(const std::string& name) const {
    return std::any_of(signature_.outputs.begin(), signature_.outputs.end(),
                       [&](const ValueInfo& output) { return output.name == name; });
  }

  // The output that the next step takes as `past`; "" where there is none.
  std::string PresentOf(const std::string& past) const {
    for (const std::string& name : graph::PresentNames(past))
      if (HasOutput(name)) return name;
    return "";
  }

  Result<Feed> PlanOf(const ValueInfo& input) {
    const Meaning* known = Find(input);
    Feed feed{.input = input, .role = Role::kOther, .axes = {}, .present = PresentOf(input.name)};
    if (known == nullptr && !feed.present.empty()) return StateOf(std::move(feed));
    const bool is_cache = known == nullptr && known_.caches.contains(input.name) && input.shape.size() == 4;
    // The keys of an encoder are the same in each step. Any other cache without a present would lose the new tokens.
    if (input.name.starts_with("past_key_values") && !Contains(input.name, "encoder"))
      return Status::Refused(
          fmt::format("input '{}' has no output '{}'", input.name, graph::PresentNames(input.name).front()));
    if (known != nullptr) feed.role = known->role;
    const std::string axes =
        known != nullptr ? AxesOf(*known, input.shape.size()) : std::string(input.shape.size(), '?');
    for (size_t i = 0; i < input.shape.size(); ++i) {
      if (axes[i] != '?' && input.shape[i] < 0) {
        feed.axes.push_back({KindOf(axes[i]), 0});
      } else {
        feed.axes.push_back(is_cache ? CacheAxis(input, i) : AnyAxis(input, i, feed.role));
      }
    }
    if (feed.role == Role::kOther)
      invented_.push_back(fmt::format("input '{}' ({})", input.name,
                                      IsInteger(input.type)        ? "zeros"
                                      : input.type == DType::kBool ? "true"
                                                                   : "random"));
    return feed;
  }

  // An axis whose length no role tells.
  Axis AnyAxis(const ValueInfo& input, size_t i, Role role) {
    if (input.shape[i] >= 0) return {Axis::Kind::kGiven, input.shape[i]};
    const std::string& name = input.symbols[i];
    if (const auto told = Told(input, i)) return {Axis::Kind::kGiven, *told};
    if (const auto found = meaning_.find(name); found != meaning_.end()) return {found->second, 0};
    if (Contains(name, "batch")) return {Axis::Kind::kBatch, 0};
    if (role == Role::kPositions) return {Axis::Kind::kGiven, 3};
    const std::string label = LabelOf(input, i);
    if (invented_labels_.insert(label).second)
      invented_.push_back(fmt::format("extent '{}' (all tokens so far)", label));
    return {Axis::Kind::kTotal, 0, /*is_made_up=*/true};
  }

  // Axis i of a cache [B, heads, rows, head size] that the graph reads and no step continues.
  Axis CacheAxis(const ValueInfo& input, size_t i) {
    const CacheExtents& cache = known_.caches.at(input.name);
    if (input.shape[i] < 0 && i == 1 && cache.heads > 0) return {Axis::Kind::kGiven, cache.heads};
    if (input.shape[i] < 0 && i == 2) return {Axis::Kind::kPast, 0};
    if (input.shape[i] < 0 && i == 3 && cache.head_size > 0) return {Axis::Kind::kGiven, WidthOf(input, cache)};
    return AnyAxis(input, i, Role::kOther);
  }

  // Elements of a row: int4 has two channels in one.
  static int64_t WidthOf(const ValueInfo& input, const CacheExtents& cache) {
    return input.type == DType::kI4 ? (cache.head_size + 1) / 2 : cache.head_size;
  }

  // "kv_cache_dim", or "past_key_values.0.key.3" where the axis has no name.
  static std::string LabelOf(const ValueInfo& input, size_t i) {
    return input.symbols[i].empty() ? fmt::format("{}.{}", input.name, i) : input.symbols[i];
  }

  // What the caller says, of this axis or of all that have its name.
  std::optional<int64_t> Told(const ValueInfo& input, size_t i) {
    for (const std::string& label : {fmt::format("{}.{}", input.name, i), input.symbols[i]}) {
      if (const auto found = known_.named.find(label); !label.empty() && found != known_.named.end()) {
        used_.insert(label);
        return found->second;
      }
    }
    return std::nullopt;
  }

  Result<Feed> StateOf(Feed feed) {
    feed.role = Role::kState;
    const ValueInfo& input = feed.input;
    const auto of_graph = known_.caches.find(input.name);
    const CacheExtents cache = of_graph == known_.caches.end() ? CacheExtents{} : of_graph->second;
    const size_t rank = input.shape.size();
    for (size_t i = 0; i < rank; ++i) {
      const std::string& name = input.symbols[i];
      const bool grows = Contains(name, "past") || Contains(name, "seq") || (rank >= 4 && i == rank - 2);
      int64_t extent = 0;
      if (input.shape[i] >= 0) {
        extent = input.shape[i];
      } else if (const auto told = Told(input, i)) {
        extent = *told;
      } else if (Contains(name, "batch") || (i == 0 && !HasBatch(input))) {
        feed.axes.push_back({Axis::Kind::kBatch, 0});
        continue;
      } else if (grows) {
        extent = cache.rows;
      } else if (rank == 4 && i == 3 && cache.head_size > 0) {
        extent = WidthOf(input, cache);
      } else if (rank == 4 && i == 1 && cache.heads > 0) {
        extent = cache.heads;
      } else {
        return Status::Refused(fmt::format(
            "input '{}' has shape {}, and nothing tells the extent of its axis {}; needs option 'extent' = '{}=N'",
            input.name, ShapeText(input.shape), i, LabelOf(input, i)));
      }
      feed.axes.push_back({Axis::Kind::kGiven, extent});
    }
    return feed;
  }

  static bool HasBatch(const ValueInfo& input) {
    return std::any_of(input.symbols.begin(), input.symbols.end(),
                       [](const std::string& name) { return Contains(name, "batch"); });
  }

  std::string WhichAreOpen() const {
    std::set<std::string> names;
    for (const ValueInfo& input : signature_.inputs)
      for (const std::string& name : input.symbols)
        if (!name.empty() && !meaning_.contains(name)) names.insert(name);
    return names.empty() ? "all are known" : fmt::format("have '{}'", fmt::join(names, "', '"));
  }

  const Signature& signature_;
  const KnownInputs& known_;
  std::map<std::string, Axis::Kind> meaning_;  // of symbolic extents, by name
  std::set<std::string> used_;                 // of known_.named
  std::set<std::string> invented_labels_;
  std::vector<std::string> invented_;
};

}  // namespace

int64_t Axis::At(const Step& step) const {
  switch (kind) {
    case Kind::kGiven: return extent;
    case Kind::kBatch: return step.batch;
    case Kind::kTokens: return step.tokens;
    case Kind::kTotal: return step.total();
    case Kind::kPast: return step.past;
  }
  return 0;
}

std::vector<int64_t> Feed::ShapeAt(const Step& step) const {
  std::vector<int64_t> shape;
  for (const Axis& axis : axes) shape.push_back(axis.At(step));
  return shape;
}

Result<Feeds> Feeds::Create(const Signature& signature, const KnownInputs& known) {
  Planner planner(signature, known);
  Feeds feeds;
  KVSHARE_ASSIGN_OR_RETURN(feeds.feeds_, planner.Plan());
  feeds.invented_ = std::move(planner).invented();
  return feeds;
}

bool Feeds::HasPrompt() const {
  return std::any_of(feeds_.begin(), feeds_.end(), [](const Feed& f) { return f.IsPrompt(); });
}

bool Feeds::HasStates() const {
  return std::any_of(feeds_.begin(), feeds_.end(), [](const Feed& f) { return f.role == Role::kState; });
}

Result<NamedTensors> Feeds::Make(const Step& step, uint64_t seed) const {
  NamedTensors made;
  for (const Feed& feed : feeds_) {
    const std::string& name = feed.input.name;
    if (feed.role == Role::kState) continue;
    if (const auto given = step.given.find(name); given != step.given.end()) {
      KVSHARE_RETURN_IF_ERROR(CheckShape(feed, step, given->second));
      KVSHARE_ASSIGN_OR_RETURN(made[name], As(feed.input, given->second));
      continue;
    }
    KVSHARE_ASSIGN_OR_RETURN(Tensor tensor, ZerosOf(feed.input, feed.ShapeAt(step)));
    auto random = RandomOf(seed, name, 0);  // at each step the same: an encoder's output, say
    if (feed.role == Role::kOther || feed.role == Role::kEmbeddings) {
      Invent(random, tensor);
    } else {
      Count(feed, step, tensor);
    }
    made[name] = std::move(tensor);
  }
  return made;
}

Result<NamedTensors> Feeds::FirstStates(const Step& step) const {
  NamedTensors states;
  for (const Feed& feed : feeds_) {
    if (feed.role != Role::kState) continue;
    KVSHARE_ASSIGN_OR_RETURN(states[feed.input.name], ZerosOf(feed.input, feed.ShapeAt(step)));
  }
  return states;
}

Result<Tensor> RandomPrompt(const Feed& feed, const Step& step, uint64_t seed, int64_t vocabulary) {
  KVSHARE_ASSIGN_OR_RETURN(Tensor tensor, ZerosOf(feed.input, feed.ShapeAt(step)));
  auto random = RandomOf(seed, feed.input.name, step.past);
  if (feed.role != Role::kIds) {
    Invent(random, tensor);
    return tensor;
  }
  std::vector<int64_t> ids(static_cast<size_t>(tensor.Elements()));
  for (int64_t& id : ids) id = static_cast<int64_t>(random() % static_cast<uint64_t>(vocabulary));
  return Tensor::Integers(tensor.type, tensor.shape, ids);
}

}  // namespace kvshare::host
