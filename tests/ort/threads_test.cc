// The op library in stock ONNX Runtime, one session run from many threads: each gets the answer that one alone gets.
// In C++, because ThreadSanitizer wants an instrumented program around the library.
#include <gtest/gtest.h>
#include <onnxruntime_c_api.h>

#include <atomic>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "host/find_ort.h"
#include "host/npz.h"
#include "host/ort_host.h"

namespace kvshare::host {
namespace {

constexpr int kThreads = 8;
constexpr int kRounds = 3;

// How the library comes in, and a case of tests/data that it serves so.
struct Way {
  const char* name;
  const char* model;
  SessionSetup setup;
  bool parallel = false;  // ORT_PARALLEL: nodes that wait for no other one run at once
};

void PrintTo(const Way& way, std::ostream* out) { *out << way.name; }

SessionSetup DropIn() {
  SessionSetup setup;
  setup.entries = {{"kvshare.drop_in", "1"}};
  setup.library = KVSHARE_ORT_LIBRARY;
  return setup;
}

SessionSetup Provider() {
  SessionSetup setup;
  setup.provider = KVSHARE_ORT_LIBRARY;
  return setup;
}

const Way kWays[] = {
    {"DropIn", "head_shared_gqa", DropIn()},
    {"Provider", "mixed_bias_asis", Provider()},  // whose masks become one node, and whose copies aliases
    {"ProviderOfParallelNodes", "mixed_bias_asis", Provider(), /*parallel=*/true},
};

std::string Folder(const Way& way) { return std::string(KVSHARE_TEST_DATA) + "/" + way.model; }

std::shared_ptr<const OrtHost> Ort() {
  const auto file = FindOrt("", KVSHARE_TEST_DATA);
  EXPECT_TRUE(file.ok()) << file.status().message();
  const auto ort = OrtHost::Open(*file);
  EXPECT_TRUE(ort.ok()) << ort.status().message();
  return *ort;
}

// What no user of Session asks for: set by the test itself.
using Adjust = OrtStatus* (*)(const OrtApi&, OrtSessionOptions*);

OrtStatus* RunParallel(const OrtApi& api, OrtSessionOptions* options) {
  return api.SetSessionExecutionMode(options, ORT_PARALLEL);
}

// ThreadSanitizer does not see how ONNX Runtime's own threads wait for each other.
OrtStatus* UseNoPool(const OrtApi& api, OrtSessionOptions* options) { return api.SetIntraOpNumThreads(options, 1); }

Result<Session> OpenAdjusted(const std::shared_ptr<const OrtHost>& ort, const std::string& model, bool provider,
                             Adjust adjust) {
  const OrtApi& api = ort->api();
  OrtSessionOptions* options = nullptr;
  EXPECT_EQ(api.CreateSessionOptions(&options), nullptr);
  EXPECT_EQ(api.SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_ERROR), nullptr);
  EXPECT_EQ(adjust(api, options), nullptr);
  if (provider) {
    EXPECT_TRUE(ort->AppendProvider(KVSHARE_ORT_LIBRARY, options).ok());
  }
  auto session = Session::Make(ort, model, options);
  EXPECT_TRUE(session.ok()) << session.status().message();
  api.ReleaseSessionOptions(options);
  return session;
}

Session Open(const std::shared_ptr<const OrtHost>& ort, const Way& way) {
  const std::string model = Folder(way) + "/model.onnx";
  auto session =
      way.parallel ? OpenAdjusted(ort, model, /*provider=*/true, RunParallel) : Session::Create(ort, model, way.setup);
  EXPECT_TRUE(session.ok()) << session.status().message();
  return *std::move(session);
}

// The prompt of the case, with an empty past.
NamedTensors Feeds(const Session& session, const Way& way) {
  NamedTensors feeds = *ReadNpz(Folder(way) + "/golden.npz");
  for (const ValueInfo& input : session.Describe().inputs)
    if (!feeds.contains(input.name))
      feeds[input.name] = Tensor::Zeros(input.type, {1, input.shape[1], 0, input.shape[3]});
  return feeds;
}

template <typename Body>
void OnThreads(const Body& body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(body);
  for (std::thread& thread : threads) thread.join();
}

class OrtThreads : public testing::TestWithParam<Way> {};

TEST_P(OrtThreads, ThatRunOneSessionGetTheBitsOfARunAlone) {
  const auto ort = Ort();
  const Session session = Open(ort, GetParam());
  const NamedTensors feeds = Feeds(session, GetParam());
  const auto alone = session.Run(feeds);
  ASSERT_TRUE(alone.ok()) << alone.status().message();
  OnThreads([&] {
    for (int round = 0; round < kRounds; ++round) {
      const auto outputs = session.Run(feeds);
      ASSERT_TRUE(outputs.ok()) << outputs.status().message();
      for (const auto& [name, tensor] : *alone) EXPECT_EQ(tensor.data, outputs->at(name).data) << name;
    }
  });
}

TEST_P(OrtThreads, MayMakeAndEndSessionsOfTheirOwn) {
  const auto ort = Ort();
  const Session first = Open(ort, GetParam());
  const NamedTensors feeds = Feeds(first, GetParam());
  const auto alone = first.Run(feeds);
  ASSERT_TRUE(alone.ok()) << alone.status().message();
  OnThreads([&] {
    const Session session = Open(ort, GetParam());
    const auto outputs = session.Run(feeds);
    ASSERT_TRUE(outputs.ok()) << outputs.status().message();
    EXPECT_EQ(alone->at("logits").data, outputs->at("logits").data);
  });
}

// Half of the sessions have the provider, half are ONNX Runtime's alone; neither changes the other's numbers.
TEST(OrtThreads, MakeSessionsWithTheProviderAndWithoutIt) {
  const Way way = {"Provider", "mixed_bias_asis", {}};
  const std::string model = Folder(way) + "/model.onnx";
  const auto ort = Ort();
  NamedTensors feeds;
  std::vector<NamedTensors> alone;
  for (const bool provider : {false, true}) {
    const auto session = OpenAdjusted(ort, model, provider, UseNoPool);
    ASSERT_TRUE(session.ok());
    feeds = Feeds(*session, way);
    auto outputs = session->Run(feeds);
    ASSERT_TRUE(outputs.ok()) << outputs.status().message();
    alone.push_back(*std::move(outputs));
  }
  std::atomic<size_t> next = 0;
  OnThreads([&] {
    const size_t provider = next++ % 2;
    const auto session = OpenAdjusted(ort, model, provider == 1, UseNoPool);
    ASSERT_TRUE(session.ok());
    for (int round = 0; round < kRounds; ++round) {
      const auto outputs = session->Run(feeds);
      ASSERT_TRUE(outputs.ok()) << outputs.status().message();
      EXPECT_EQ(alone[provider].at("logits").data, outputs->at("logits").data) << provider;
    }
  });
}

// Sessions outlive the registration of their provider.
TEST(OrtThreads, RunOnWhileTheirProviderIsRegisteredAnew) {
  const Way way = {"Provider", "mixed_bias_asis", Provider()};
  const auto ort = Ort();
  auto session = std::make_unique<const Session>(Open(ort, way));
  const NamedTensors feeds = Feeds(*session, way);
  const auto alone = session->Run(feeds);
  ASSERT_TRUE(alone.ok()) << alone.status().message();
  const OrtApi& api = ort->api();
  OrtEnv* const env = const_cast<OrtEnv*>(ort->env());
  std::thread registrar([&] {
    for (int round = 0; round < 2 * kThreads; ++round) {
      // OrtHost registers a library by its path.
      EXPECT_EQ(api.UnregisterExecutionProviderLibrary(env, KVSHARE_ORT_LIBRARY), nullptr);
      EXPECT_EQ(api.RegisterExecutionProviderLibrary(env, KVSHARE_ORT_LIBRARY, KVSHARE_ORT_LIBRARY), nullptr);
    }
    EXPECT_EQ(api.UnregisterExecutionProviderLibrary(env, KVSHARE_ORT_LIBRARY), nullptr);
  });
  OnThreads([&] {
    for (int round = 0; round < kRounds; ++round) {
      const auto outputs = session->Run(feeds);
      ASSERT_TRUE(outputs.ok()) << outputs.status().message();
      EXPECT_EQ(alone->at("logits").data, outputs->at("logits").data);
    }
  });
  registrar.join();
  EXPECT_TRUE(session->Run(feeds).ok());
  session.reset();
}

INSTANTIATE_TEST_SUITE_P(Ways, OrtThreads, testing::ValuesIn(kWays),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace kvshare::host
