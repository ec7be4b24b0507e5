// The features that a rewrite may want of a model. A target is a preset of features.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "kvshare/rewrite.h"

namespace kvshare::graph {

enum class Feature : uint32_t {
  kOwnGqa = 1U << 0,          // own Attention layers become GroupQueryAttention
  kOwnInKvshare = 1U << 1,    // own GroupQueryAttention layers run in kvshare
  kToExternalKey = 1U << 2,   // shared layers become kvshare::GroupQueryAttention with external key and value
  kToEmptyKey = 1U << 3,      // shared layers become com.microsoft's, with key and value of length 0: upstream's form
  kToKeyMask = 1U << 4,       // shared layers become kvshare::Attention with a key mask
  kFoldRotary = 1U << 5,      // rotary embeddings of shared layers' queries move into GroupQueryAttention
  kNamedPresents = 1U << 6,   // shared layers keep presents that nobody reads
  kPruneInputs = 1U << 7,     // graph inputs that nobody reads go
  kLastToken = 1U << 8,       // layers behind the last own keys compute the last token alone
  kHeadsAsTheyAre = 1U << 9,  // attention takes key-value heads that the graph does not repeat
  kOwnToKeyMask = 1U << 10,   // own Attention layers become kvshare's, with a key mask
  kWindowCaches = 1U << 11,   // caches of own layers with a window hold no more than it and a slack
  kNarrowCaches = 1U << 12,   // caches hold elements of another type
  kOwnToStandard = 1U << 13,  // own layers become ai.onnx's Attention of opset 25
  kToStandard = 1U << 14,     // shared layers do
  kStaticCaches = 1U << 15,   // Attention over caches that the graph writes runs in kvshare
  kOneOfEqualCaches = 1U << 16,  // of caches that always hold the same one stays
};

class Features {
 public:
  Features() = default;
  Features(std::initializer_list<Feature> features) {
    for (const Feature feature : features) Add(feature);
  }
  void Add(Feature feature) { bits_ |= static_cast<uint32_t>(feature); }
  void Remove(Feature feature) { bits_ &= ~static_cast<uint32_t>(feature); }
  bool Has(Feature feature) const { return (bits_ & static_cast<uint32_t>(feature)) != 0; }
  bool HasAnyOf(Features others) const { return (bits_ & others.bits_) != 0; }

 private:
  uint32_t bits_ = 0;
};

// The target's preset with what the other options add and take away. `names_presents`: an ONNX Runtime that must load
// the result crashes where presents are not named.
Features FeaturesOf(const RewriteOptions& options, bool names_presents);

}  // namespace kvshare::graph
