// Continues token numbers by a file that `twoheads export --step` wrote.
//
//   generate FILE.onnx COUNT 504 2430 314        COUNT new tokens behind these
//
// Every run takes the tokens that are new and what the last run kept of those before. Prints the new tokens and the
// seconds of the prompt and of a step as one line of JSON.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

static int64_t number(const char* word) {
  char* end = nullptr;
  const int64_t value = std::strtoll(word, &end, 10);
  if (*end || end == word) throw std::runtime_error(std::string(word) + " is no number");
  return value;
}

// What there is of an input before the first token: no keys and values, states of zeros.
static Ort::Value empty(const Ort::Session& session, size_t input, OrtAllocator* allocator) {
  auto shape = session.GetInputTypeInfo(input).GetTensorTypeAndShapeInfo().GetShape();
  for (auto& dim : shape) dim = std::max<int64_t>(dim, 0);  // a dimension that is not known is -1
  Ort::Value value = Ort::Value::CreateTensor<float>(allocator, shape.data(), shape.size());
  const size_t count = value.GetTensorTypeAndShapeInfo().GetElementCount();
  if (count) std::fill_n(value.GetTensorMutableData<float>(), count, 0.0f);
  return value;
}

static int64_t most_likely(const Ort::Value& logits) {
  const float* data = logits.GetTensorData<float>();
  const size_t count = logits.GetTensorTypeAndShapeInfo().GetElementCount();
  return std::max_element(data, data + count) - data;
}

int main(int argc, char** argv) {
  if (argc < 4) return std::fprintf(stderr, "usage: generate FILE.onnx COUNT TOKEN...\n"), 2;
  try {
    const int64_t count = number(argv[2]);
    std::vector<int64_t> fresh;
    for (int at = 3; at < argc; ++at) fresh.push_back(number(argv[at]));
    Ort::Env env(ORT_LOGGING_LEVEL_FATAL, "twoheads");  // what goes wrong is an exception, told below
    Ort::SessionOptions options;
    options.AddConfigEntry("session.intra_op.allow_spinning", "0");  // leaves the cores to others between operators
    Ort::Session session(env, argv[1], options);

    Ort::AllocatorWithDefaultOptions allocator;
    std::vector<std::string> names;
    for (size_t at = 0; at < session.GetInputCount(); ++at)
      names.emplace_back(session.GetInputNameAllocated(at, allocator).get());
    for (size_t at = 0; at < session.GetOutputCount(); ++at)
      names.emplace_back(session.GetOutputNameAllocated(at, allocator).get());
    const size_t inputs = session.GetInputCount();
    if (inputs < 2 || names.size() != 2 * inputs || names[inputs] != "last")
      throw std::runtime_error("the file does not extend a sequence: export it with --step");
    std::vector<const char*> pointers;
    for (const auto& name : names) pointers.push_back(name.c_str());

    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::vector<Ort::Value> given;
    given.emplace_back(nullptr);
    for (size_t at = 1; at < inputs; ++at) given.push_back(empty(session, at, allocator));
    std::vector<int64_t> found;
    std::vector<double> seconds;
    for (int64_t made = 0; made < count; ++made) {
      const int64_t shape[] = {1, static_cast<int64_t>(fresh.size())};
      given[0] = Ort::Value::CreateTensor<int64_t>(memory, fresh.data(), fresh.size(), shape, 2);
      const auto began = std::chrono::steady_clock::now();
      auto results = session.Run(Ort::RunOptions{nullptr}, pointers.data(), given.data(), inputs,
                                 pointers.data() + inputs, inputs);
      seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
      fresh = {most_likely(results[0])};
      found.push_back(fresh[0]);
      for (size_t at = 1; at < inputs; ++at) given[at] = std::move(results[at]);  // in the same order
    }
    double steps = 0;
    for (size_t at = 1; at < seconds.size(); ++at) steps += seconds[at];
    std::printf("{\"tokens\": [");
    for (size_t at = 0; at < found.size(); ++at) std::printf("%s%lld", at ? ", " : "", static_cast<long long>(found[at]));
    std::printf("], \"prompt_seconds\": %.6f, \"step_seconds\": %.6f}\n", seconds.empty() ? 0.0 : seconds[0],
                seconds.size() > 1 ? steps / static_cast<double>(seconds.size() - 1) : 0.0);
  } catch (const std::exception& error) {  // the model's own limits come as Ort::Exception with the reason in them
    return std::fprintf(stderr, "generate: %s\n", error.what()), 1;
  }
}
