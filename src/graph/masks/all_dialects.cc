#include "graph/masks/dialect.h"

namespace kvshare::graph {

const std::vector<Dialect>& AllDialects() {
  static const std::vector<Dialect> dialects = {{"cumsum", "CumSum", ReadCumSumMask},
                                                {"columns", "Range", ReadColumnMask}};
  return dialects;
}

}  // namespace kvshare::graph
