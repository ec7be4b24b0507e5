// Are a model's logits the golden ones? verify_golden MODEL CASE FOLDER, which has ONNX Runtime's wheel in its .venv.
#include <kvshare/verify.h>

#include <cstdio>

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const auto runtime = kvshare::OpenOnnxRuntime("", argv[3]);
  kvshare::VerifyOptions options;
  options.golden = argv[2];
  const auto verification = runtime.ok() ? kvshare::Verify(argv[1], options, **runtime) : runtime.status();
  if (!verification.ok()) {
    std::fprintf(stderr, "%s\n", verification.status().message().c_str());
    return 1;
  }
  std::printf("%zu steps, %s\n", verification->steps.size(), verification->equal ? "equal" : "not equal");
  return verification->equal ? 0 : 1;
}
