// Runs a file that `twoheads export` wrote on token numbers, and prints every output, and the time, as one line of JSON.
//
//   run FILE.onnx 101 7592 102        tokens as arguments
//   run FILE.onnx - < tokens.txt      or on standard input, separated by spaces or lines
#include <onnxruntime_cxx_api.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

static std::vector<int64_t> read_tokens(int argc, char** argv) {
  std::vector<int64_t> tokens;
  if (argc == 3 && std::string(argv[2]) == "-") {
    for (int64_t token; std::cin >> token;) tokens.push_back(token);
    if (!std::cin.eof()) throw std::runtime_error("standard input holds something that is no whole number");
    return tokens;
  }
  for (int at = 2; at < argc; ++at) {
    char* end = nullptr;
    tokens.push_back(std::strtoll(argv[at], &end, 10));
    if (*end || end == argv[at]) throw std::runtime_error(std::string(argv[at]) + " is no token number");
  }
  return tokens;
}

static void print(const std::string& name, const Ort::Value& value, bool first) {
  const auto info = value.GetTensorTypeAndShapeInfo();
  std::printf("%s\"%s\": {\"shape\": [", first ? "{" : ", ", name.c_str());
  const auto shape = info.GetShape();
  for (size_t at = 0; at < shape.size(); ++at) std::printf("%s%lld", at ? ", " : "", static_cast<long long>(shape[at]));
  std::printf("], \"data\": [");
  const float* data = value.GetTensorData<float>();
  for (size_t at = 0; at < info.GetElementCount(); ++at) std::printf("%s%.9g", at ? ", " : "", data[at]);
  std::printf("]}");
}

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "usage: run FILE.onnx TOKEN... | run FILE.onnx -\n"), 2;
  try {
    std::vector<int64_t> tokens = read_tokens(argc, argv);
    Ort::Env env(ORT_LOGGING_LEVEL_FATAL, "twoheads");  // what goes wrong is an exception, told below
    Ort::SessionOptions options;
    options.AddConfigEntry("session.intra_op.allow_spinning", "0");  // leaves the cores to others between operators
    Ort::Session session(env, argv[1], options);

    Ort::AllocatorWithDefaultOptions allocator;
    if (session.GetInputCount() != 1) throw std::runtime_error("the model takes several inputs, this program gives one");
    const std::string input = session.GetInputNameAllocated(0, allocator).get();
    std::vector<std::string> names;
    for (size_t at = 0; at < session.GetOutputCount(); ++at)
      names.emplace_back(session.GetOutputNameAllocated(at, allocator).get());

    const int64_t shape[] = {1, static_cast<int64_t>(tokens.size())};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const Ort::Value given = Ort::Value::CreateTensor<int64_t>(memory, tokens.data(), tokens.size(), shape, 2);
    const char* input_name = input.c_str();
    std::vector<const char*> output_names;
    for (const auto& name : names) output_names.push_back(name.c_str());
    const auto began = std::chrono::steady_clock::now();
    const auto results = session.Run(Ort::RunOptions{nullptr}, &input_name, &given, 1, output_names.data(), names.size());
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - began;
    for (size_t at = 0; at < results.size(); ++at) print(names[at], results[at], at == 0);
    std::printf(", \"seconds\": %.6f}\n", seconds.count());
  } catch (const std::exception& error) {  // the model's own limits come as Ort::Exception with the reason in them
    return std::fprintf(stderr, "run: %s\n", error.what()), 1;
  }
}
