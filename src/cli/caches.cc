#include "cli/caches.h"

namespace kvshare::cli {

host::Caches CachesOf(const Inspection& inspection) {
  host::Caches caches;
  for (const AttentionLayer& layer : inspection.layers) {
    const host::CacheExtents extents{.head_size = layer.head_size, .rows = layer.window_sized ? layer.window : 0};
    for (const std::string& past : {layer.past_key, layer.past_value})
      if (!past.empty()) caches[past] = extents;
  }
  return caches;
}

}  // namespace kvshare::cli
