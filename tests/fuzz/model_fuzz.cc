// Bytes -> ONNX loader -> inspect, and every rewrite target in memory. A file may be refused; it may crash nothing, and
// what a rewrite makes of an accepted one must be as sound as it was.
#include "tests/fuzz/rewrite_all.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace kvshare::graph;
  const auto file = ParseModel({reinterpret_cast<const char*>(data), size}, kvshare::fuzz::Folder() / "model.onnx");
  if (file.ok()) kvshare::fuzz::RewriteAll(file->model, file->folder);
  return 0;
}
