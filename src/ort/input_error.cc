#include "ort/input_error.h"

#include <fmt/format.h>

namespace kvshare::ort {

Status InputError(std::string_view where, const char* input, const std::string& fact, const std::string& want) {
  return Status::InvalidInput(fmt::format("{}: input '{}' {}; needs {}", where, input, fact, want));
}

Status CheckRank(std::string_view where, const char* input, const Tensor& tensor, size_t rank, const char* want) {
  if (tensor.rank == rank) return {};
  return InputError(where, input, fmt::format("has rank {} (shape {})", tensor.rank, tensor.ShapeText()), want);
}

Status CheckPair(std::string_view where, const char* a_name, bool a, const char* b_name, bool b) {
  if (a == b) return {};
  return InputError(where, a ? b_name : a_name, fmt::format("is absent while '{}' is given", a ? a_name : b_name),
                    "both or neither");
}

}  // namespace kvshare::ort
