#include "ort/call_exec.h"

namespace kvshare::ort {

Result<void*> DeviceMemory::Take(size_t bytes) {
  const OrtApi& api = context_.api();
  const OrtMemoryInfo* info = nullptr;
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.GetTensorMemoryInfo(like_, &info)));
  if (allocator_ == nullptr)
    KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.KernelContext_GetAllocator(context_.ort(), info, &allocator_)));
  void*& block = blocks_.at(taken_);
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.KernelContext_GetScratchBuffer(context_.ort(), info, bytes, &block)));
  ++taken_;
  return block;
}

DeviceMemory::~DeviceMemory() {
  if (allocator_ == nullptr) return;
  const OrtApi& api = context_.api();
  // A block that cannot be given back stays with the provider until its session ends.
  for (size_t i = 0; i < taken_; ++i) static_cast<void>(FromOrt(api, api.AllocatorFree(allocator_, blocks_.at(i))));
  api.ReleaseAllocator(allocator_);
}

Status CallExec::Begin() {
  if (backend_.memory == Memory::kHost) return {};
  KVSHARE_ASSIGN_OR_RETURN(exec_.stream, context_.Stream());
  return {};
}

}  // namespace kvshare::ort
