// The nodes that make masks, as one node: in place of each mask it writes a key mask [B, T] into the mask's buffer.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <string>
#include <vector>

#include "ep/claims.h"
#include "ep/handshake.h"
#include "kvshare/status.h"

namespace kvshare::ep {

class MaskGroup final : public OrtNodeComputeInfo {
 public:
  // `inputs` and `outputs` are those of the fused node. kInternal where they are not those that `masks` were planned
  // for. A call fails where `handshake` misses a reader of the masks.
  static Result<std::unique_ptr<MaskGroup>> Make(const OrtApi& api, const std::map<std::string, MaskOutput>& masks,
                                                 const std::vector<std::string>& inputs,
                                                 const std::vector<std::string>& outputs,
                                                 std::shared_ptr<const Handshake> handshake);

 private:
  struct Written {
    size_t output;
    size_t source;  // an input of the fused node
    MaskOutput mask;
  };

  MaskGroup(const OrtApi& api, std::shared_ptr<const Handshake> handshake);
  Status Run(OrtKernelContext* context);

  const OrtApi& api_;
  std::vector<Written> written_;
  std::shared_ptr<const Handshake> handshake_;
  CheckedOnce checked_;
};

}  // namespace kvshare::ep
