#include "ort/backends.h"

namespace kvshare::ort {

std::span<const Backend* const> Backends() {
  static const Backend* const backends[] = {&CpuBackend()};
  return backends;
}

}  // namespace kvshare::ort
