// Two releases of ONNX Runtime in one process, both with the op library: each kernel calls the one that made it.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <onnxruntime_c_api.h>

#include <string>

#include "host/find_ort.h"
#include "host/npz.h"
#include "host/ort_host.h"

namespace kvshare::host {
namespace {

const std::string kCase = std::string(KVSHARE_TEST_DATA) + "/head_shared_gqa";

std::shared_ptr<const OrtHost> Open(const std::string& where) {
  const auto file = FindOrt(where, KVSHARE_TEST_DATA);
  EXPECT_TRUE(file.ok()) << file.status().message();
  const auto ort = OrtHost::Open(*file);
  EXPECT_TRUE(ort.ok()) << ort.status().message();
  return *ort;
}

Result<Session> DropInSession(const std::shared_ptr<const OrtHost>& ort) {
  return Session::Create(ort, kCase + "/model.onnx",
                         {.entries = {{"kvshare.drop_in", "1"}}, .library = KVSHARE_ORT_LIBRARY});
}

// The prompt of the case, with an empty past.
NamedTensors Feeds(const Session& session) {
  NamedTensors feeds = *ReadNpz(kCase + "/golden.npz");
  for (const ValueInfo& input : session.Describe().inputs)
    if (!feeds.contains(input.name))
      feeds[input.name] = Tensor::Zeros(input.type, {1, input.shape[1], 0, input.shape[3]});
  return feeds;
}

TEST(TwoHosts, EachRunTheirOwnKernels) {
  const auto first = Open("");
  const auto second = Open(std::string(KVSHARE_ORT_RELEASES) + "/1.30.0");
  ASSERT_NE(first->version(), second->version());
  ASSERT_NE(&first->api(), &second->api());

  const auto a = DropInSession(first);
  ASSERT_TRUE(a.ok()) << a.status().message();
  const NamedTensors feeds = Feeds(*a);
  const auto want = a->Run(feeds);
  ASSERT_TRUE(want.ok()) << want.status().message();
  const auto b = DropInSession(second);
  ASSERT_TRUE(b.ok()) << b.status().message();
  const auto again = DropInSession(first);
  ASSERT_TRUE(again.ok()) << again.status().message();
  // Each after the other has registered and run.
  for (const Session* session : {&*a, &*b, &*again, &*a}) {
    const auto got = session->Run(feeds);
    ASSERT_TRUE(got.ok()) << got.status().message();
    const auto* logits = reinterpret_cast<const float*>(got->at("logits").data.data());
    const auto* expected = reinterpret_cast<const float*>(want->at("logits").data.data());
    for (size_t i = 0; i < want->at("logits").data.size() / sizeof(float); ++i)
      ASSERT_NEAR(logits[i], expected[i], 1e-4) << i;
  }
  // An error goes through the host's own table, too.
  NamedTensors wrong = feeds;
  wrong.at("attention_mask") = Tensor::Zeros(wrong.at("attention_mask").type, {1, 1});
  for (const Session* session : {&*a, &*b}) EXPECT_FALSE(session->Run(wrong).ok());
}

const OrtApi* real_api = nullptr;
int calls_of_the_copy = 0;

// A host that only looks like another one: a copy of the table, which counts the inputs that are asked of it.
const OrtApi& CountingCopy() {
  static OrtApi copy = *real_api;
  copy.KernelContext_GetInput = [](const OrtKernelContext* context, size_t index, const OrtValue** out) noexcept {
    ++calls_of_the_copy;
    return real_api->KernelContext_GetInput(context, index, out);
  };
  return copy;
}

TEST(TwoHosts, AKernelCallsTheOneThatMadeIt) {
  const auto ort = Open("");
  real_api = &ort->api();
  const auto session = DropInSession(ort);
  ASSERT_TRUE(session.ok()) << session.status().message();

  void* library = dlopen(KVSHARE_ORT_LIBRARY, RTLD_NOW | RTLD_NOLOAD);
  ASSERT_NE(library, nullptr);
  const auto registers =
      reinterpret_cast<OrtStatus* (*)(OrtSessionOptions*, const OrtApiBase*)>(dlsym(library, "RegisterCustomOps"));
  const OrtApiBase later = {[](uint32_t) noexcept { return &CountingCopy(); }, []() noexcept { return "1.32.0"; }};
  OrtSessionOptions* options = nullptr;
  ASSERT_EQ(real_api->CreateSessionOptions(&options), nullptr);
  ASSERT_EQ(registers(options, &later), nullptr);

  ASSERT_TRUE(session->Run(Feeds(*session)).ok());
  EXPECT_EQ(calls_of_the_copy, 0);
  real_api->ReleaseSessionOptions(options);
}

}  // namespace
}  // namespace kvshare::host
