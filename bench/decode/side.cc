#include "decode/side.h"

#include <string>

#include "kvshare/attend.h"

extern "C" [[gnu::visibility("default")]] const char* kvshare_decode_side(const kvshare::AttentionCall* call) {
  static kvshare::WorkspacePool pool;
  static std::string message;
  const kvshare::Status status = kvshare::Attend(*call, kvshare::ParallelFor::Serial(), pool);
  if (status.ok()) return nullptr;
  message = status.message();
  return message.c_str();
}
