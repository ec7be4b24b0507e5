// What attention does a model hold, and who borrows whose cache?
#include <kvshare/rewrite.h>

#include <cstdio>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const kvshare::Result<kvshare::Inspection> inspection = kvshare::Inspect(argv[1]);
  if (!inspection.ok()) {
    std::fprintf(stderr, "%s\n", inspection.status().message().c_str());
    return 1;
  }
  int shared = 0;
  for (const kvshare::AttentionLayer& layer : inspection->layers) {
    if (layer.kind == kvshare::LayerKind::kShared) ++shared;
  }
  std::printf("%zu layers, %d borrow\n", inspection->layers.size(), shared);
  return shared > 0 ? 0 : 1;
}
