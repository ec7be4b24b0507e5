// Window-sized caches of a rewritten model in onnxruntime-genai's configuration.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "kvshare/rewrite.h"
#include "kvshare/status.h"

namespace kvshare::genai {

// Lets onnxruntime-genai bind caches of as many rows as `model` wants (window_cache_rows), and send prompts in chunks
// that fit. A model without such caches changes nothing. Adds a line to `changes` for each member that is new.
// kRefused for windows of several sizes, and for caches that the configuration's names do not number.
Status SetWindowCaches(const Inspection& model, nlohmann::ordered_json& config, std::vector<std::string>& changes);

}  // namespace kvshare::genai
