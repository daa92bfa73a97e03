// ONNX Runtime as this addon sees it: the library that the user's onnxruntime-node bundles, opened
// at run time.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace fla {

// A failure reported by ONNX Runtime, with its OrtErrorCode.
class OrtFailure : public std::runtime_error {
 public:
  OrtFailure(int code, const std::string& message) : std::runtime_error(message), code(code) {}
  const int code;
};

// Opens `path` on the first call of the process; later calls must name the same library.
void load_ort(const std::string& path);

// The function table; load_ort() must have succeeded before.
const OrtApi& ort();

std::string ort_version();
uint32_t ort_api_version();
std::vector<std::string> ort_providers();

// Throws an OrtFailure, and releases the status, when it is an error.
void check(OrtStatus* status);

// The process's OrtEnv. Everything that came from ONNX Runtime keeps a share, so that it goes last.
class Environment {
 public:
  // The one in use, or a new one with this log level (0 verbose .. 4 fatal) when there is none.
  static std::shared_ptr<Environment> acquire(int log_level);
  ~Environment();
  OrtEnv* get() const { return env_; }

 private:
  explicit Environment(int log_level);
  OrtEnv* env_ = nullptr;
};

// Owns an ONNX Runtime object; `release` is the table's function for its type.
template <typename T>
using OrtHandle = std::unique_ptr<T, void (*)(T*)>;

inline OrtHandle<OrtTypeInfo> own(OrtTypeInfo* p) {
  return {p, [](OrtTypeInfo* x) { ort().ReleaseTypeInfo(x); }};
}
inline OrtHandle<OrtTensorTypeAndShapeInfo> own(OrtTensorTypeAndShapeInfo* p) {
  return {p, [](OrtTensorTypeAndShapeInfo* x) { ort().ReleaseTensorTypeAndShapeInfo(x); }};
}
inline OrtHandle<OrtModelMetadata> own(OrtModelMetadata* p) {
  return {p, [](OrtModelMetadata* x) { ort().ReleaseModelMetadata(x); }};
}
inline OrtHandle<OrtSessionOptions> own(OrtSessionOptions* p) {
  return {p, [](OrtSessionOptions* x) { ort().ReleaseSessionOptions(x); }};
}
inline OrtHandle<OrtSession> own(OrtSession* p) {
  return {p, [](OrtSession* x) { ort().ReleaseSession(x); }};
}
inline OrtHandle<OrtMemoryInfo> own(OrtMemoryInfo* p) {
  return {p, [](OrtMemoryInfo* x) { ort().ReleaseMemoryInfo(x); }};
}
inline OrtHandle<OrtAllocator> own(OrtAllocator* p) {
  return {p, [](OrtAllocator* x) { ort().ReleaseAllocator(x); }};
}
inline OrtHandle<OrtIoBinding> own(OrtIoBinding* p) {
  return {p, [](OrtIoBinding* x) { ort().ReleaseIoBinding(x); }};
}
inline OrtHandle<OrtCUDAProviderOptionsV2> own(OrtCUDAProviderOptionsV2* p) {
  return {p, [](OrtCUDAProviderOptionsV2* x) { ort().ReleaseCUDAProviderOptions(x); }};
}

// The host's memory, as ONNX Runtime describes it; kept for ever.
const OrtMemoryInfo* cpu_memory();

// The default CPU allocator; it belongs to ONNX Runtime and is never released.
OrtAllocator* default_allocator();

// Takes over a string that ONNX Runtime allocated from default_allocator().
std::string take_string(char* text);

}  // namespace fla
