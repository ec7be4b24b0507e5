#include "graph/masks/dialect.h"

namespace kvshare::graph {

const std::vector<Dialect>& AllDialects() {
  static const std::vector<Dialect> dialects = {{"cumsum", ReadCumSumMask}};
  return dialects;
}

}  // namespace kvshare::graph
