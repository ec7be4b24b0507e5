// What the fuzz targets of src/graph share.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "graph/graph.h"
#include "graph/inspection.h"
#include "graph/model_file.h"
#include "graph/rewrite_graph.h"
#include "graph/validate.h"

namespace kvshare::fuzz {

// A folder of this process, gone with it, with a file for external data.
struct TemporaryFolder {
  std::string path = (std::filesystem::temp_directory_path() / "kvshare-fuzz-XXXXXX").string();
  TemporaryFolder() {
    if (mkdtemp(path.data()) == nullptr) std::abort();
    std::ofstream(path + "/model.onnx.data") << std::string(4096, '\1');
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() { std::filesystem::remove_all(path); }
};

// The folder of every fuzzed model.
inline std::filesystem::path Folder() {
  static const TemporaryFolder folder;
  return folder.path;
}

inline void Require(const Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, status.message().c_str());
  std::abort();
}

inline void RewriteAll(const onnx::ModelProto& model, const std::filesystem::path& folder) {
  const auto sound = [&](onnx::ModelProto proto) -> Result<graph::Graph> {
    KVSHARE_ASSIGN_OR_RETURN(graph::Graph made, graph::Graph::Make(std::move(proto), folder));
    KVSHARE_RETURN_IF_ERROR(graph::Validate(made));
    return made;
  };
  if (!sound(model).ok()) return;
  for (const Target target : {Target::kKvshare, Target::kKvshareAttention, Target::kOrt, Target::kOnnx25})
    for (const char* min_ort : {"1.27", "1.31"}) {
      if (target != Target::kOrt && min_ort != std::string("1.31")) continue;
      RewriteOptions options;
      options.target = target;
      options.min_ort = min_ort;
      options.prune_inputs = true;
      auto made = sound(model);
      Require(RewriteGraph(*made, options).status(), "rewrite");
      Require(sound((*std::move(made)).Release()).status(), "the rewritten model");
    }
}

}  // namespace kvshare::fuzz
