// The extension module: paths and options in; out comes what the library answers, mostly as JSON. No logic.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "kvshare/calibrate.h"
#include "kvshare/doctor.h"
#include "kvshare/genai.h"
#include "kvshare/rewrite.h"
#include "kvshare/runner.h"
#include "kvshare/verify.h"
#include "kvshare/version.h"
#include "report/progress.h"
#include "report/report.h"

namespace nb = nanobind;

namespace {

using Answer = std::pair<std::string, std::string>;  // "ok" and JSON, or the kind of failure and its message
// Of a model's caches, by present: the largest magnitude of each channel, from which its scale is made.
using ChannelSizes = std::map<std::string, std::vector<float>>;

// `text` of the library, with its options under the names that the package's functions give them.
std::string Spelled(const std::string& text) {
  static const std::map<std::string, std::string> others = {
      {"target", "to"}, {"weights_name", "weights"}, {"extent", "extents"}};
  return kvshare::report::SpellOptions(text, [](const std::string& name, const std::string& value) {
    const auto found = others.find(name);
    const std::string option = "option '" + (found == others.end() ? name : found->second) + "'";
    return value.empty() ? option : option + " = '" + value + "'";
  });
}

Answer Failure(const kvshare::Status& status) {
  const char* const code = status.code() == kvshare::StatusCode::kInvalidInput ? "invalid"
                           : status.code() == kvshare::StatusCode::kRefused    ? "refused"
                                                                               : "internal";
  return {code, kvshare::report::OneLine(Spelled(status.message()))};
}

template <typename T>
Answer AnswerOf(const kvshare::Result<T>& result) {
  if (!result.ok()) return Failure(result.status());
  return {"ok", Spelled(kvshare::report::ToJson(*result))};
}

nb::tuple AsTuple(const Answer& answer) { return nb::make_tuple(answer.first, answer.second); }

nb::tuple Inspect(const std::string& path, const std::string& cuda) {
  Answer answer;
  {
    const nb::gil_scoped_release released;
    answer = AnswerOf(kvshare::Inspect(path, {.cuda = cuda}));
  }
  return AsTuple(answer);
}

// What the library calls the value of one of the package's options. The message of a wrong one names those of `known`.
template <typename T, size_t kCount>
kvshare::Result<T> ValueOf(const char* option, const std::string& value,
                           const std::array<std::pair<std::string_view, T>, kCount>& known) {
  std::string accepted;
  for (size_t i = 0; i < kCount; ++i) {
    if (value == known[i].first) return known[i].second;
    accepted += (i == 0 ? "" : i + 1 == kCount ? " or " : ", ") + std::string(known[i].first);
  }
  return kvshare::Status::InvalidInput("option '" + std::string(option) + "' is '" + value + "'; needs " + accepted);
}

// What rewrite(own=...) makes of layers that have keys and values of their own: kept as they are, or not.
constexpr std::array<std::pair<std::string_view, bool>, 2> kKeepsOwnLayers = {{{"convert", false}, {"keep", true}}};

// The arguments of the package's rewrite(), as _tools.py has them.
struct RewriteWords {
  std::string to, own, rope;            // "": the target's default rope
  std::optional<std::string> kv_cache;  // none: caches hold what they did
};

// The options that are words of a list.
kvshare::Result<kvshare::RewriteOptions> ReadWords(const RewriteWords& words) {
  kvshare::RewriteOptions options;
  KVSHARE_ASSIGN_OR_RETURN(options.target, ValueOf("to", words.to, kvshare::kTargets));
  KVSHARE_ASSIGN_OR_RETURN(options.keep_own, ValueOf("own", words.own, kKeepsOwnLayers));
  if (!words.rope.empty()) {
    KVSHARE_ASSIGN_OR_RETURN(options.rope, ValueOf("rope", words.rope, kvshare::kRopes));
  }
  if (words.kv_cache) {
    options.kv_cache.emplace();
    KVSHARE_ASSIGN_OR_RETURN(options.kv_cache->type, ValueOf("kv_cache", *words.kv_cache, kvshare::kCacheTypes));
  }
  return options;
}

nb::tuple Rewrite(const std::string& path, const std::string& output, const std::string& to, const std::string& own,
                  const std::string& rope, const std::string& min_ort, const std::vector<std::string>& skip,
                  std::optional<int64_t> window_caches, const std::optional<std::string>& kv_cache,
                  const ChannelSizes& largest, bool scale_per_tensor, bool fast_prefill, bool prune_inputs,
                  const std::string& weights, bool link_weights, bool dry_run, bool progress) {
  auto options = ReadWords({.to = to, .own = own, .rope = rope, .kv_cache = kv_cache});
  if (!options.ok()) return AsTuple(Failure(options.status()));
  options->min_ort = min_ort;
  options->skip = skip;
  options->window_caches = window_caches;
  if (options->kv_cache) {
    options->kv_cache->scale_per_tensor = scale_per_tensor;
    options->kv_cache->largest = largest;
  }
  options->fast_prefill = fast_prefill;
  options->prune_inputs = prune_inputs;
  options->weights_name = weights;
  options->link_weights = link_weights;
  options->dry_run = dry_run;
  if (progress) options->progress = kvshare::report::CopyBar();
  Answer answer;
  {
    const nb::gil_scoped_release released;
    answer = AnswerOf(kvshare::Rewrite(path, output, *options));
  }
  return AsTuple(answer);
}

nb::tuple Genai(const std::string& folder, const std::string& output, const std::map<std::string, std::string>& options,
                bool undo, const std::string& library, bool progress) {
  Answer answer;
  {
    const nb::gil_scoped_release released;
    const auto bar = progress ? kvshare::report::CopyBar() : kvshare::report::Progress();
    const auto done =
        undo ? kvshare::UndoGenaiProvider(folder) : kvshare::AddGenaiProvider(folder, output, options, bar);
    answer = done.ok() ? Answer{"ok", kvshare::report::ToJson(*done, undo ? "" : library)} : Failure(done.status());
  }
  return AsTuple(answer);
}

// ONNX's number of an element type, and the library's name for it.
constexpr std::pair<int, kvshare::DType> kTypes[] = {
    {1, kvshare::DType::kF32},   {2, kvshare::DType::kI4},     {3, kvshare::DType::kI8},   {6, kvshare::DType::kI32},
    {7, kvshare::DType::kI64},   {9, kvshare::DType::kBool},   {10, kvshare::DType::kF16}, {11, kvshare::DType::kF64},
    {16, kvshare::DType::kBF16}, {17, kvshare::DType::kF8E4M3}};

std::optional<kvshare::DType> TypeOf(int code) {
  for (const auto& [known, type] : kTypes)
    if (known == code) return type;
  return std::nullopt;
}

int CodeOf(kvshare::DType type) {
  for (const auto& [code, known] : kTypes)
    if (known == type) return code;
  return 0;
}

// How values cross: as _runtime.py has them.
using PyValueInfo = std::tuple<std::string, int, std::vector<int64_t>, std::vector<std::string>>;
using PyTensor = std::tuple<int, std::vector<int64_t>, nb::bytes>;

// What a Python call throws, as the library's failure. What is no Exception, such as KeyboardInterrupt, ends the call.
template <typename F>
auto Caught(F call) -> decltype(call()) {
  try {
    return call();
  } catch (const nb::python_error& error) {
    if (!error.matches(PyExc_Exception)) throw;
    const std::string text = nb::str(error.value()).c_str();
    return kvshare::Status::Refused(text.substr(0, text.find('\n')));
  } catch (const nb::cast_error&) {
    return kvshare::Status::Internal("a value of onnxruntime has another type than kvshare expects");
  }
}

kvshare::Result<std::vector<kvshare::ValueInfo>> ValuesOf(const std::vector<PyValueInfo>& values) {
  std::vector<kvshare::ValueInfo> infos;
  for (const auto& [name, code, shape, symbols] : values) {
    const auto type = TypeOf(code);
    if (!type)
      return kvshare::Status::Refused("'" + name +
                                      "' has an element type that kvshare does not know; needs f32, f16, bf16, " +
                                      "f64, int32, int64, int8, uint8, float8e4m3fn or bool");
    infos.push_back({name, *type, shape, symbols});
  }
  return infos;
}

// A session of the caller's onnxruntime.
class PyRunner final : public kvshare::Runner {
 public:
  static kvshare::Result<std::unique_ptr<kvshare::Runner>> Make(const nb::object& session) {
    auto made = std::make_unique<PyRunner>();
    made->session_ = session;
    const auto described =
        nb::cast<std::pair<std::vector<PyValueInfo>, std::vector<PyValueInfo>>>(session.attr("describe")());
    KVSHARE_ASSIGN_OR_RETURN(made->signature_.inputs, ValuesOf(described.first));
    KVSHARE_ASSIGN_OR_RETURN(made->signature_.outputs, ValuesOf(described.second));
    return std::unique_ptr<kvshare::Runner>(std::move(made));
  }

  const kvshare::Signature& Describe() const override { return signature_; }

  kvshare::Result<kvshare::NamedTensors> Run(const kvshare::NamedTensors& feeds) const override {
    return Caught([&]() -> kvshare::Result<kvshare::NamedTensors> {
      std::map<std::string, PyTensor> given;
      for (const auto& [name, tensor] : feeds)
        given.emplace(name,
                      PyTensor{CodeOf(tensor.type), tensor.shape, nb::bytes(tensor.data.data(), tensor.data.size())});
      kvshare::NamedTensors results;
      for (const auto& [name, value] : nb::cast<std::map<std::string, PyTensor>>(session_.attr("run")(given))) {
        const auto& [code, shape, bytes] = value;
        const auto type = TypeOf(code);
        if (!type)
          return kvshare::Status::Refused("output '" + name + "' has an element type that kvshare does not know");
        kvshare::Tensor tensor{*type, shape, std::vector<std::byte>(bytes.size())};
        std::memcpy(tensor.data.data(), bytes.c_str(), bytes.size());
        results.emplace(name, std::move(tensor));
      }
      return results;
    });
  }

 private:
  nb::object session_;
  kvshare::Signature signature_;
};

// The caller's onnxruntime: an object of _runtime.Runtime.
class PyRuntime final : public kvshare::Runtime {
 public:
  explicit PyRuntime(nb::object runtime) : runtime_(std::move(runtime)) {}

  kvshare::Result<std::unique_ptr<kvshare::Runner>> Load(const std::string& model_path,
                                                         const kvshare::SessionSetup& setup) const override {
    return Caught([&] {
      const nb::bytes model(setup.model.data(), setup.model.size());
      return PyRunner::Make(runtime_.attr("load")(model_path, setup.entries, setup.library, setup.provider, model));
    });
  }
  std::string version() const override { return nb::cast<std::string>(runtime_.attr("version")()); }
  std::string where() const override { return nb::cast<std::string>(runtime_.attr("where")()); }

 private:
  nb::object runtime_;
};

// `via`: how kvshare comes into the session; "": as the model needs.
kvshare::Result<kvshare::RunOptions> RunOptionsOf(const std::string& via, const std::string& library,
                                                  const kvshare::SessionEntries& entries,
                                                  const std::map<std::string, int64_t>& extents) {
  kvshare::RunOptions options{
      .via = kvshare::Via::kAsNeeded, .library = library, .entries = entries, .extents = extents};
  if (!via.empty()) {
    KVSHARE_ASSIGN_OR_RETURN(options.via, ValueOf("via", via, kvshare::kVias));
  }
  return options;
}

nb::tuple Calibrate(const std::string& path, const nb::object& runtime, const std::string& inputs,
                    const std::string& library) {
  const kvshare::RunOptions options{.via = kvshare::Via::kAsNeeded, .library = library, .entries = {}, .extents = {}};
  const auto largest = kvshare::Calibrate(path, inputs, options, PyRuntime(runtime));
  if (!largest.ok()) return nb::make_tuple(AsTuple(Failure(largest.status())), ChannelSizes());
  return nb::make_tuple(nb::make_tuple("ok", "{}"), *largest);
}

nb::tuple Verify(const std::string& path, const nb::object& runtime, const std::string& golden,
                 const std::string& against, std::optional<double> tolerance, uint64_t seed, int64_t prompt,
                 int64_t steps, bool hard, const std::string& via, const std::string& library,
                 const kvshare::SessionEntries& entries, const std::map<std::string, int64_t>& extents, bool progress) {
  const auto run = RunOptionsOf(via, library, entries, extents);
  if (!run.ok()) return AsTuple(Failure(run.status()));
  const kvshare::VerifyOptions options{
      .golden = golden,
      .against = against,
      .tolerance = tolerance,
      .tokens = {.seed = seed, .prompt = prompt, .steps = steps},
      .hard = hard,
      .run = *run,
      .progress = progress ? kvshare::report::VerifyBar() : kvshare::report::Progress()};
  return AsTuple(AnswerOf(kvshare::Verify(path, options, PyRuntime(runtime))));
}

nb::tuple DropInFor(const std::string& path) {
  const auto inspection = kvshare::Inspect(path);
  return AsTuple(inspection.ok() ? Answer{"ok", kvshare::DropInFor(*inspection)} : Failure(inspection.status()));
}

nb::tuple Diagnose(const std::string& path, const nb::object& runtime, const std::string& via,
                   const std::string& library, const kvshare::SessionEntries& entries,
                   const std::map<std::string, int64_t>& extents) {
  const auto options = RunOptionsOf(via, library, entries, extents);
  if (!options.ok()) return AsTuple(Failure(options.status()));
  return AsTuple(AnswerOf(kvshare::Diagnose(path, *options, PyRuntime(runtime))));
}

}  // namespace

NB_MODULE(_native, module) {
  module.def("version", [] { return kvshare::kVersion; });
  module.def("inspect", &Inspect, nb::arg("path"), nb::kw_only(), nb::arg("cuda"));
  module.def("drop_in_for", &DropInFor, nb::arg("path"));
  module.def("rewrite", &Rewrite, nb::arg("path"), nb::arg("output"), nb::kw_only(), nb::arg("to"), nb::arg("own"),
             nb::arg("rope"), nb::arg("min_ort"), nb::arg("skip"), nb::arg("window_caches").none(),
             nb::arg("kv_cache").none(), nb::arg("largest"), nb::arg("scale_per_tensor"), nb::arg("fast_prefill"),
             nb::arg("prune_inputs"), nb::arg("weights"), nb::arg("link_weights"), nb::arg("dry_run"),
             nb::arg("progress"));
  module.def("calibrate", &Calibrate, nb::arg("path"), nb::arg("runtime"), nb::kw_only(), nb::arg("inputs"),
             nb::arg("library"));
  module.def("genai", &Genai, nb::arg("folder"), nb::kw_only(), nb::arg("output"), nb::arg("options"), nb::arg("undo"),
             nb::arg("library"), nb::arg("progress"));
  module.def("verify", &Verify, nb::arg("path"), nb::arg("runtime"), nb::kw_only(), nb::arg("golden"),
             nb::arg("against"), nb::arg("tolerance").none(), nb::arg("seed"), nb::arg("prompt"), nb::arg("steps"),
             nb::arg("hard"), nb::arg("via"), nb::arg("library"), nb::arg("entries"), nb::arg("extents"),
             nb::arg("progress"));
  module.def("diagnose", &Diagnose, nb::arg("path"), nb::arg("runtime"), nb::kw_only(), nb::arg("via"),
             nb::arg("library"), nb::arg("entries"), nb::arg("extents"));
}
