#include "graph/rules/features.h"

namespace kvshare::graph {
namespace {

Features Preset(Target target) {
  switch (target) {
    case Target::kKvshare:
      return {Feature::kHeadsAsTheyAre, Feature::kOwnGqa, Feature::kOwnInKvshare, Feature::kToExternalKey,
              Feature::kStaticCaches};
    case Target::kKvshareAttention:
      return {Feature::kHeadsAsTheyAre, Feature::kOwnToKeyMask, Feature::kToKeyMask, Feature::kStaticCaches};
    case Target::kOnnx25: return {Feature::kHeadsAsTheyAre, Feature::kOwnToStandard, Feature::kToStandard};
    case Target::kOrt: return {Feature::kHeadsAsTheyAre, Feature::kOwnGqa, Feature::kToEmptyKey};
  }
  return {};
}

}  // namespace

Features FeaturesOf(const RewriteOptions& options, bool names_presents) {
  Features wanted = Preset(options.target);
  wanted.Add(Feature::kOneOfEqualCaches);
  if (options.keep_own) {
    wanted.Remove(Feature::kOwnGqa);
    wanted.Remove(Feature::kOwnInKvshare);
    wanted.Remove(Feature::kOwnToKeyMask);
    wanted.Remove(Feature::kOwnToStandard);
  }
  if (options.rope == Rope::kFold) wanted.Add(Feature::kFoldRotary);
  if (names_presents && wanted.Has(Feature::kToEmptyKey)) wanted.Add(Feature::kNamedPresents);
  if (options.window_caches) wanted.Add(Feature::kWindowCaches);
  if (options.kv_cache) wanted.Add(Feature::kNarrowCaches);
  if (options.fast_prefill) wanted.Add(Feature::kLastToken);
  if (options.prune_inputs) wanted.Add(Feature::kPruneInputs);
  return wanted;
}

}  // namespace kvshare::graph
