// The two symbols that the library exports.
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "ops/common/cpu.h"
#include "ops/common/scratch.h"
#include "ops/register/ort_op.h"
#ifdef FLA_BUILD_CUDA
#include "ops/register/cuda.h"
#endif

namespace fla {
namespace {

constexpr const char* kDomain = "com.fla";
constexpr uint32_t kOldestApi = 18;  // ONNX Runtime 1.18

// One custom-op domain per ONNX Runtime in the process. Sessions keep pointers into it, so it is
// never freed.
struct Domain {
  OpList ops;
  OrtCustomOpDomain* ort = nullptr;
};

// The newest API that both sides know. Version 1.x offers API x; asking it for more prints to
// stderr.
Runtime find_runtime(const OrtApiBase* base) {
  Runtime runtime{nullptr, ORT_API_VERSION, 0};
  std::sscanf(base->GetVersionString(), "1.%d", &runtime.minor_version);
  if (runtime.minor_version > 0) {
    runtime.api_version =
        std::min(runtime.api_version, static_cast<uint32_t>(runtime.minor_version));
  }
  for (; runtime.api_version >= kOldestApi; --runtime.api_version) {
    runtime.api = base->GetApi(runtime.api_version);
    if (runtime.api) break;
  }
  return runtime;
}

OrtStatus* make_domain(const Runtime& runtime, Domain* domain) {
  add_linear_attention(&domain->ops, runtime);
  add_causal_conv_with_state(&domain->ops, runtime);
  add_window_attention(&domain->ops, runtime);
  add_hybrid_attention(&domain->ops, runtime);
  OrtStatus* status = runtime.api->CreateCustomOpDomain(kDomain, &domain->ort);
  for (const auto& op : domain->ops) {
    if (!status) status = runtime.api->CustomOpDomain_Add(domain->ort, op.get());
  }
  return status;
}

OrtStatus* register_ops(OrtSessionOptions* options, const Runtime& runtime) {
  static std::mutex mutex;
  static auto& domains = *new std::map<const OrtApi*, Domain*>;
  const std::lock_guard<std::mutex> lock(mutex);
  Domain*& domain = domains[runtime.api];
  if (!domain) {
    auto made = std::make_unique<Domain>();
    OrtStatus* status = make_domain(runtime, made.get());
    if (status) return status;
    domain = made.release();
  }
  return runtime.api->AddCustomOpDomain(options, domain->ort);
}

// false when this library was built without CUDA kernels, else how many GPUs the process sees.
std::string cuda_info() {
#ifdef FLA_BUILD_CUDA
  return "{\"devices\":" + std::to_string(cuda_devices()) + "}";
#else
  return "false";
#endif
}

// A runtime too old for us still has the first API version's CreateStatus.
OrtStatus* too_old(const OrtApiBase* base) {
  const std::string message =
      std::string("com.fla: ONNX Runtime must be 1.18 or newer, received ") +
      base->GetVersionString();
  return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, message.c_str());
}

}  // namespace
}  // namespace fla

// Adds the com.fla operators to a session; ONNX Runtime calls it from RegisterCustomOpsLibrary.
extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL
RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const fla::Runtime runtime = fla::find_runtime(base);
  if (!runtime.api) return fla::too_old(base);
  try {
    return fla::register_ops(options, runtime);
  } catch (const std::exception& error) {
    return runtime.api->CreateStatus(ORT_FAIL, error.what());
  }
}

// What this library is, as JSON: version, instruction set, operators, CUDA, and the most bytes of
// work memory that its CPU kernels held at one time since the last call. Valid until the thread's
// next call.
extern "C" __attribute__((visibility("default"))) const char* fla_ops_info() {
  thread_local char text[1024];
  std::snprintf(text, sizeof text,
                "{\"version\":\"%s\",\"isa\":\"%s\","
                "\"ops\":[\"com.fla.LinearAttention\",\"com.fla.CausalConvWithState\","
                "\"com.fla.WindowAttention\",\"com.fla.HybridAttention\"],"
                "\"cuda\":%s,\"workspace_peak\":%zu}",
                FLA_VERSION, fla::cpu_isa(), fla::cuda_info().c_str(), fla::scratch_peak());
  return text;
}
