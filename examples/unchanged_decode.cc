// The smallest use of the execution provider from C++: an unchanged model, its attention layers in kvshare.
//
//   unchanged_decode MODEL LIBRARY        LIBRARY: libkvshare_ort.so
//
// Runs one step over ones, with empty caches, and prints the shape of the first output.
#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <filesystem>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

namespace {

constexpr const char* kProvider = "KvshareExecutionProvider";

Ort::SessionOptions WithKvshare(Ort::Env& env, const char* library) {
  // ONNX Runtime looks for a relative path in its own folder.
  env.RegisterExecutionProviderLibrary("kvshare", std::filesystem::absolute(library));
  std::vector<Ort::ConstEpDevice> ours;
  for (const Ort::ConstEpDevice& device : env.GetEpDevices())
    if (std::string_view(device.EpName()) == kProvider) ours.push_back(device);
  Ort::SessionOptions options;
  options.AppendExecutionProvider_V2(env, ours, Ort::KeyValuePairs{});
  return options;
}

// Ones, with extents of 1 where the model leaves them open; caches, whose names open with "past", are empty.
Ort::Value MakeInput(const std::string& name, const Ort::ConstTensorTypeAndShapeInfo& info) {
  std::vector<int64_t> shape = info.GetShape();
  for (int64_t& extent : shape) extent = extent < 0 ? 1 : extent;
  if (name.starts_with("past")) shape[2] = 0;
  Ort::AllocatorWithDefaultOptions allocator;
  Ort::Value value = Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), info.GetElementType());
  const size_t count = value.GetTensorTypeAndShapeInfo().GetElementCount();
  if (info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64)
    for (size_t i = 0; i < count; ++i) value.GetTensorMutableData<int64_t>()[i] = 1;
  return value;
}

void Run(const char* model, const char* library) {
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "unchanged_decode");
  const Ort::SessionOptions options = WithKvshare(env, library);
  Ort::Session session(env, model, options);
  const std::vector<std::string> inputs = session.GetInputNames();
  const std::vector<std::string> outputs = session.GetOutputNames();
  std::vector<const char*> input_names, output_names;
  std::vector<Ort::Value> values;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Ort::TypeInfo type = session.GetInputTypeInfo(i);
    values.push_back(MakeInput(inputs[i], type.GetTensorTypeAndShapeInfo()));
    input_names.push_back(inputs[i].c_str());
  }
  for (const std::string& output : outputs) output_names.push_back(output.c_str());
  const auto results = session.Run(Ort::RunOptions{}, input_names.data(), values.data(), values.size(),
                                   output_names.data(), output_names.size());
  std::cout << outputs[0] << ":";
  for (const int64_t extent : results[0].GetTensorTypeAndShapeInfo().GetShape()) std::cout << " " << extent;
  std::cout << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: unchanged_decode MODEL LIBRARY\n";
    return 64;
  }
  try {
    Run(argv[1], argv[2]);
  } catch (const Ort::Exception& e) {
    std::cerr << e.what() << "\n";
    return 1;
  }
  return 0;
}
