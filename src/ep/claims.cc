#include "ep/claims.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "core/ops.h"
#include "graph/layers.h"
#include "graph/match/attention.h"
#include "graph/match/readers.h"
#include "graph/match/repeat.h"

namespace kvshare::ep {
namespace {

using graph::Decline;
using graph::DeclineCode;
using graph::Graph;
using graph::Input;
using graph::Layer;
using graph::MaskMeaning;
using graph::Matched;
using graph::Node;
using graph::Output;

using enum attention::Input;

// A layer that borrows a cache and says is_causal without a past. Exporters mean the lower right: by ONNX's top left, a
// decoded token would see one key of the whole cache.
bool BorrowsCausally(const Layer& layer) {
  return !layer.IsGqa() && layer.IsShared() && !layer.made_outside && !layer.key.empty() && layer.source >= 0 &&
         graph::IntAttribute(*layer.node, "is_causal") == 1 && Input(*layer.node, kPastK).empty() &&
         Input(*layer.node, kNonpad).empty();
}

bool PresentsUnread(const Layer& layer) {
  const std::string& key = Output(*layer.node, attention::kPresentKey);
  const std::string& value = Output(*layer.node, attention::kPresentValue);
  const auto unread = [&](const std::string& present) { return present.empty() || !layer.graph->IsRead(present); };
  return !(key.empty() && value.empty()) && unread(key) && unread(value);
}

// Begins with all layers whose masks or copies might take another meaning, and drops one after the other that a guard
// or another reader forbids, until no more have to go.
class Finder {
 public:
  Finder(const Graph& graph, const ClaimOptions& options)
      : graph_(graph), options_(options), layers_(graph::FindLayers(graph)) {}

  Claims Find() {
    for (const Layer& layer : layers_)
      if (!layer.graph->IsFunction() && !layer.IsKvshare()) AddPlain(layer);
    if (options_.masks) FindMasks();
    if (options_.aliases) FindAliases();
    return std::move(claims_);
  }

 private:
  void AddReason(const Layer& layer, const char* what, const std::string& why) {
    claims_.reasons.push_back(fmt::format("{}: {}: {}", graph::Describe(*layer.node), what, why));
  }

  // Has the layer's node no kernel for a plan? Says so, as the reason for `what`.
  bool IsRefused(const Layer& layer, const char* what) {
    const auto refused = options_.refused.find(Output(*layer.node, 0));
    if (refused == options_.refused.end()) return false;
    AddReason(layer, what, refused->second);
    return true;
  }

  Plan& PlanOf(const Layer& layer) { return claims_.plans.at(Output(*layer.node, 0)); }

  // Plans what the layer's kernel may do whether or not the nodes around it are taken.
  void AddPlain(const Layer& layer) {
    Plan plan;
    plan.hides_presents = PresentsUnread(layer);
    const bool repairs = options_.alignment == CausalAlignment::kAuto && BorrowsCausally(layer);
    plan.lower_right = repairs || options_.alignment == CausalAlignment::kLowerRight;
    if (repairs) claims_.repaired.push_back(graph::Describe(*layer.node));
    const auto [at, added] = claims_.plans.try_emplace(Output(*layer.node, 0), plan);
    if (added || at->second == plan) return;
    at->second = Plan{};
    AddReason(layer, "taken as ONNX says",
              fmt::format("two bodies have a value '{}' that would mean different things", Output(*layer.node, 0)));
  }

  // --- masks

  Matched<MaskMeaning> MatchMask(const Layer& layer) const {
    if (layer.graph != &graph_) return Decline(DeclineCode::kMaskUnknown, "lies in a body");
    for (const char* window : {"left_window_size", "right_window_size"})
      if (graph::Differs(*layer.node, window))
        return graph::Because(DeclineCode::kWindowAttribute, "has {}, which its kernel reads beside the mask", window);
    if (!graph::Input(*layer.node, kNonpad).empty())
      return Decline(DeclineCode::kOwnLengths, "has nonpad_kv_seqlen, which its kernel reads beside the mask");
    const bool shared = layer.IsShared();
    if (!shared) {
      KVSHARE_ASSIGN_OR_RETURN(MaskMeaning mask, graph::MatchOwnAttention(layer));
      return CheckMeaning(std::move(mask), /*repairs=*/false);
    }
    KVSHARE_RETURN_IF_ERROR(graph::CheckSourceIsLayer(layer));
    KVSHARE_ASSIGN_OR_RETURN(graph::SharedMatch match,
                             graph::MatchSharedAttention(layers_, layer, /*counts_lengths=*/false));
    if (layer.made_outside && !match.mask.columns)
      return Decline(DeclineCode::kKeyIsMadeOutside, "its keys are made outside of attention");
    return CheckMeaning(std::move(match.mask), match.repairs_causality);
  }

  Matched<MaskMeaning> CheckMeaning(MaskMeaning mask, bool repairs) const {
    if (!mask.padding && !mask.columns)
      return Decline(DeclineCode::kMaskKeepsPadding, "its mask does not hide the padding");
    if (options_.alignment != CausalAlignment::kSpec) return mask;
    if (repairs) return Decline(DeclineCode::kNotCausal, "is_causal without a past counts from the first key");
    if (mask.rank == 3)
      return Decline(DeclineCode::kMaskUnknown, "its mask is [B, S, T], whose B ONNX lines up with the heads");
    return mask;
  }

  // Such a mask cannot be in the group, which runs once and before all attention.
  bool MadeFromAttention(const std::string& mask) {
    const auto [known, fresh] = made_from_attention_.try_emplace(mask, false);
    if (!fresh) return known->second;
    std::unordered_set<const Node*> seen;
    std::vector<std::string> open = {mask};
    while (!open.empty() && !known->second) {
      const Node* node = graph_.Producer(open.back());
      open.pop_back();
      if (node == nullptr || !seen.insert(node).second) continue;
      known->second = graph::IsAttentionOp(*node);
      for (auto& name : graph::ReadNames(*node)) open.push_back(std::move(name));
    }
    return known->second;
  }

  void FindMasks() {
    std::map<const Layer*, MaskMeaning> meanings;
    for (const Layer& layer : layers_) {
      if (layer.IsGqa() || layer.IsKvshare() || layer.graph->IsFunction()) continue;
      if (Input(*layer.node, kMask).empty() || IsRefused(layer, "keeps its mask")) continue;
      auto meaning = MatchMask(layer);
      if (meaning.ok() && MadeFromAttention(Input(*layer.node, kMask)))
        meaning = Decline(DeclineCode::kMaskUnknown, "its mask depends on an attention layer's output");
      if (meaning.ok() && !meaning->padding)
        DropMask(layer, *meaning);
      else if (meaning.ok())
        meanings.emplace(&layer, *std::move(meaning));
      else
        AddReason(layer, "keeps its mask", meaning.status().message());
    }
    while (!meanings.empty() && !TakeGroup(meanings)) {
    }
  }

  // Drops a mask that hides keys by their columns alone: the kernel counts columns itself and does not read the mask.
  void DropMask(const Layer& layer, const MaskMeaning& meaning) {
    Plan& plan = PlanOf(layer);
    plan.drops_mask = true;
    plan.window = meaning.window;
    plan.lower_right = true;
  }

  // Makes the masks of `meanings` one group. False: some layers had to go from `meanings`, and the nodes that they
  // share with the others must be judged anew.
  bool TakeGroup(std::map<const Layer*, MaskMeaning>& meanings) {
    std::unordered_set<const Node*> readers;
    std::vector<std::string> masks;
    for (const auto& [layer, meaning] : meanings) {
      readers.insert(layer->node);
      masks.push_back(Input(*layer->node, kMask));
    }
    const auto taken = [&](const Node& node) { return readers.contains(&node); };
    const auto group = graph::NodesOnlyFor(graph_, masks, taken);
    const size_t before = meanings.size();
    std::map<std::string, MaskOutput> outputs;
    for (auto at = meanings.begin(); at != meanings.end();) {
      auto output = OutputOf(*at->first, at->second, group, taken);
      if (output.ok()) {
        outputs.emplace(Input(*at->first->node, kMask), *std::move(output));
        ++at;
      } else {
        AddReason(*at->first, "keeps its mask", output.status().message());
        at = meanings.erase(at);
      }
    }
    if (meanings.size() != before) return false;
    for (const Node* node : group) claims_.group.push_back(node->output(0));
    claims_.masks = std::move(outputs);
    for (const auto& [layer, meaning] : meanings) {
      Plan& plan = PlanOf(*layer);
      plan.key_mask = Input(*layer->node, kMask);
      plan.window = meaning.window;
      plan.columns = meaning.columns.has_value();
      plan.lower_right = true;
    }
    return true;
  }

  // The output of the group that replaces the layer's mask, or why the group does not make this mask.
  Matched<MaskOutput> OutputOf(const Layer& layer, const MaskMeaning& meaning, const std::vector<const Node*>& group,
                               const graph::IsTaken& taken) const {
    const std::string& mask = Input(*layer.node, kMask);
    KVSHARE_RETURN_IF_ERROR(graph::CheckReaders(graph_, mask, taken));
    for (const Node* reader : graph_.Consumers(mask))
      if (std::ranges::count(reader->input(), mask) != (Input(*reader, kMask) == mask ? 1 : 0))
        return graph::Because(DeclineCode::kValueIsRead, "is still read by {} as another input",
                              graph::Describe(*reader));
    if (std::ranges::find(group, graph_.Producer(mask)) == group.end())
      return Decline(DeclineCode::kValueIsRead, "a node that makes its mask has other readers");
    MaskOutput output;
    output.rank = meaning.rank;
    const auto shape = graph_.Shape(mask);
    if (shape && shape->size() >= 2) output.rows = std::max<int64_t>(1, (*shape)[shape->size() - 2]);
    KVSHARE_ASSIGN_OR_RETURN(output.source, SourceOf(meaning.key_mask, group));
    return output;
  }

  // The group's input that is `key_mask`, or a cast of it, in which zeros are zeros still.
  Matched<std::string> SourceOf(const std::string& key_mask, const std::vector<const Node*>& group) const {
    if (const Node* maker = graph_.Producer(key_mask); std::ranges::find(group, maker) != group.end())
      return graph::Because(DeclineCode::kMaskUnknown, "'{}' is the first columns of a mask, not all of it", key_mask);
    for (const Node* node : group) {
      for (const std::string& input : node->input()) {
        const Node* producer = graph_.Producer(input);
        const bool cast = graph_.IsOnnx(producer, "Cast") && Input(*producer, 0) == key_mask &&
                          std::ranges::find(group, producer) == group.end();
        if (input != key_mask && !cast) continue;
        const int type = graph_.ElementType(input);
        if (type == onnx::TensorProto::INT64 || type == onnx::TensorProto::INT32 || type == onnx::TensorProto::BOOL)
          return input;
      }
    }
    return graph::Because(DeclineCode::kMaskInputType,
                          "'{}' reaches it through nodes with other readers, or is not int64, int32 or bool", key_mask);
  }

  // --- aliases

  Decline MatchAliases(const Layer& layer) const {
    if (layer.graph != &graph_) return {DeclineCode::kValueIsCaptured, "lies in a body"};
    if (layer.expansion > 1) return graph::MatchRepeat(layer).status();
    if (!layer.trouble.ok()) return layer.trouble;
    KVSHARE_RETURN_IF_ERROR(graph::CheckSourceIsLayer(layer));
    for (const Node* copy : layer.copies)
      if (!graph_.IsOnnx(copy, "Transpose") && !graph_.IsOnnx(copy, "Reshape"))
        return graph::Because(DeclineCode::kAlreadyConverted, "{} is between", graph::Describe(*copy));
    if (layer.kv_heads <= 0 || graph::IntAttribute(*layer.node, "kv_num_heads") != layer.kv_heads)
      return {DeclineCode::kHeads, "its number of key-value heads is not known"};
    return {};
  }

  void FindAliases() {
    std::unordered_map<const Node*, const Layer*> borrowers;
    for (const Layer& layer : layers_) {
      if (layer.IsGqa() || layer.IsKvshare() || layer.copies.empty()) continue;
      if (layer.graph->IsFunction() || IsRefused(layer, "its keys and values are copied")) continue;
      const Decline odd = MatchAliases(layer);
      if (odd.ok())
        borrowers.emplace(layer.node, &layer);
      else
        AddReason(layer, "its keys and values are copied", odd.message());
    }
    while (DropOneBorrower(borrowers)) {
    }
    for (const auto& [node, layer] : borrowers) {
      for (const Node* copy : layer->copies) claims_.aliases.insert(copy->output(0));
      Plan& plan = PlanOf(*layer);
      plan.kv_heads = layer->kv_heads;
      if (layer->expansion == 1) plan.unfolded = {Input(*node, kK), Input(*node, kV)};
    }
  }

  // Drops a layer whose copies a node outside `borrowers` reads as well. False: there is none.
  bool DropOneBorrower(std::unordered_map<const Node*, const Layer*>& borrowers) {
    std::unordered_set<const Node*> copies;
    for (const auto& [node, layer] : borrowers) copies.insert(layer->copies.begin(), layer->copies.end());
    for (const Layer& layer : layers_) {
      if (!borrowers.contains(layer.node)) continue;
      for (const Node* copy : layer.copies) {
        const std::string& value = copy->output(0);
        const Decline read = graph::CheckReaders(graph_, value, [&](const Node& reader) {
          if (copies.contains(&reader)) return Input(reader, 0) == value;
          const auto borrower = borrowers.find(&reader);
          return borrower != borrowers.end() && ReadsAsKeyOrValue(*borrower->second, *copy);
        });
        if (read.ok()) continue;
        AddReason(layer, "its keys and values are copied",
                  fmt::format("{} {}", graph::Describe(*copy), read.message()));
        borrowers.erase(layer.node);
        return true;
      }
    }
    return false;
  }

  static bool ReadsAsKeyOrValue(const Layer& layer, const Node& copy) {
    const auto& inputs = layer.node->input();
    const auto as_keys = std::count(inputs.begin() + kK, inputs.begin() + kMask, copy.output(0));
    return std::ranges::find(layer.copies, &copy) != layer.copies.end() &&
           std::ranges::count(inputs, copy.output(0)) == as_keys;
  }

  const Graph& graph_;
  const ClaimOptions& options_;
  const std::vector<Layer> layers_;
  std::unordered_map<std::string, bool> made_from_attention_;  // by mask
  Claims claims_;
};

}  // namespace

std::set<std::string> Claims::Readers() const {
  std::set<std::string> readers;
  for (const auto& [output, plan] : plans)
    if (plan.ReadsOtherwise()) readers.insert(output);
  return readers;
}

void Claims::TakeOver(Claims earlier) {
  earlier.plans.merge(plans);
  plans = std::move(earlier.plans);
}

Claims FindClaims(const Graph& graph, const ClaimOptions& options) { return Finder(graph, options).Find(); }

}  // namespace kvshare::ep
