// Times one ONNX model on ONNX Runtime's CUDA provider, tensors bound to the device, without a
// language binding in between.
//   ort_op <libonnxruntime.so> <model.onnx> <milliseconds> [operator library]
// Prints a JSON line with the median of single runs, each from the call until the GPU is done, and
// of runs that follow each other without waiting. Inputs are random: decays in (-0.1, 0), betas in
// (0, 1), keys a tenth as large as the rest, which keeps the delta rules bounded.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace {

const OrtApi* api = nullptr;

void check(OrtStatus* status) {
  if (!status) return;
  std::fprintf(stderr, "%s\n", api->GetErrorMessage(status));
  std::exit(1);
}
void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

// float16 bits of a number of ordinary size.
uint16_t half_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const int exponent = static_cast<int>(bits >> 23 & 255) - 112;
  if (exponent <= 0) return static_cast<uint16_t>(bits >> 16 & 0x8000);
  return static_cast<uint16_t>((bits >> 16 & 0x8000) | exponent << 10 | (bits >> 13 & 0x3ff));
}

struct Tensor {
  std::string name;
  void* data = nullptr;
  OrtValue* value = nullptr;
};

Tensor make_tensor(OrtSession* session, size_t index, bool input, const OrtMemoryInfo* memory) {
  OrtAllocator* allocator;
  char* name;
  OrtTypeInfo* type;
  const OrtTensorTypeAndShapeInfo* info;
  check(api->GetAllocatorWithDefaultOptions(&allocator));
  check(input ? api->SessionGetInputName(session, index, allocator, &name)
              : api->SessionGetOutputName(session, index, allocator, &name));
  check(input ? api->SessionGetInputTypeInfo(session, index, &type)
              : api->SessionGetOutputTypeInfo(session, index, &type));
  check(api->CastTypeInfoToTensorInfo(type, &info));
  ONNXTensorElementDataType element;
  size_t rank, count = 1;
  check(api->GetTensorElementType(info, &element));
  check(api->GetDimensionsCount(info, &rank));
  std::vector<int64_t> shape(rank);
  check(api->GetDimensions(info, shape.data(), rank));
  for (const int64_t n : shape) count *= static_cast<size_t>(n);
  const bool half = element == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  const size_t bytes = count * (half ? 2 : 4);

  Tensor tensor;
  tensor.name = name;
  check(cudaMalloc(&tensor.data, bytes));
  if (input) {
    std::mt19937 random(static_cast<unsigned>(index) + 1);
    std::normal_distribution<float> normal;
    std::vector<unsigned char> host(bytes);
    for (size_t i = 0; i < count; ++i) {
      float x = normal(random);
      if (tensor.name == "decay") x = -0.1f * std::abs(std::tanh(x));
      if (tensor.name == "beta") x = 0.5f + 0.49f * std::tanh(x);
      if (tensor.name == "key") x *= 0.1f;
      const uint16_t bits = half_bits(x);
      std::memcpy(host.data() + i * (half ? 2 : 4), half ? static_cast<const void*>(&bits) : &x,
                  half ? 2 : 4);
    }
    check(cudaMemcpy(tensor.data, host.data(), bytes, cudaMemcpyHostToDevice));
  }
  check(api->CreateTensorWithDataAsOrtValue(memory, tensor.data, bytes, shape.data(), rank, element,
                                            &tensor.value));
  return tensor;
}

double now() {
  return std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

double median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: ort_op libonnxruntime.so model.onnx milliseconds [library]\n");
    return 2;
  }
  void* runtime = dlopen(argv[1], RTLD_NOW);
  if (!runtime) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(runtime, "OrtGetApiBase"));
  api = base()->GetApi(18);
  OrtEnv* env;
  OrtSessionOptions* options;
  OrtCUDAProviderOptionsV2* cuda;
  OrtSession* session;
  OrtMemoryInfo* memory;
  OrtIoBinding* binding;
  check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "bench", &env));
  check(api->CreateSessionOptions(&options));
  if (argc > 4) check(api->RegisterCustomOpsLibrary_V2(options, argv[4]));
  check(api->CreateCUDAProviderOptions(&cuda));
  check(api->SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda));
  check(api->CreateSession(env, argv[2], options, &session));
  check(api->CreateMemoryInfo("Cuda", OrtDeviceAllocator, 0, OrtMemTypeDefault, &memory));
  check(api->CreateIoBinding(session, &binding));
  size_t inputs, outputs;
  check(api->SessionGetInputCount(session, &inputs));
  check(api->SessionGetOutputCount(session, &outputs));
  for (size_t i = 0; i < inputs; ++i) {
    const Tensor tensor = make_tensor(session, i, true, memory);
    check(api->BindInput(binding, tensor.name.c_str(), tensor.value));
  }
  for (size_t i = 0; i < outputs; ++i) {
    const Tensor tensor = make_tensor(session, i, false, memory);
    check(api->BindOutput(binding, tensor.name.c_str(), tensor.value));
  }

  const double limit = std::atof(argv[3]);
  const auto run = [&] { check(api->RunWithBinding(session, nullptr, binding)); };
  const auto timed = [&](int count) {
    const double start = now();
    for (int i = 0; i < count; ++i) run();
    check(cudaDeviceSynchronize());
    return (now() - start) / count;
  };
  double once = 0;
  for (int i = 0; i < 5; ++i) once = timed(1);
  const int together = std::max(1, std::min(100, static_cast<int>(limit / 20 / once)));
  std::vector<double> single, chained;
  const double end = now() + limit;
  while (now() < end || single.size() < 5) {
    for (int i = 0; i < 10 && (now() < end || single.size() < 5); ++i) single.push_back(timed(1));
    chained.push_back(timed(together));
  }
  std::printf("{\"ms\":%.5f,\"chained_ms\":%.5f,\"runs\":%zu}\n", median(single), median(chained),
              single.size());
  std::fflush(stdout);
  _Exit(0);  // the provider's teardown is not part of this
}
