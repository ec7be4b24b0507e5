// A small graph as text -> inspect and every rewrite target: mutated text stays a graph where mutated protobuf rarely
// does.
#include "tests/fuzz/rewrite_all.h"
#include "tests/support/text_graph.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto model = kvshare::graph::ParseTextGraph({reinterpret_cast<const char*>(data), size});
  if (model.ok()) kvshare::fuzz::RewriteAll(*model, kvshare::fuzz::Folder());
  return 0;
}
