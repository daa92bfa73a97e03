#include "ort.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>

namespace fla {
namespace {

constexpr uint32_t kOldestApi = 18;

std::mutex mutex;
std::string library_path;
const OrtApiBase* base = nullptr;
const OrtApi* api = nullptr;
uint32_t api_version = 0;
std::weak_ptr<Environment> environment;

// "1.30.0" -> 30. Asking for a newer table than the library has works, but makes it write to
// stderr.
uint32_t minor_version(const std::string& version) {
  const size_t dot = version.find('.');
  return dot == std::string::npos ? kOldestApi
                                  : std::strtoul(version.c_str() + dot + 1, nullptr, 10);
}

}  // namespace

void load_ort(const std::string& path) {
  std::lock_guard<std::mutex> lock(mutex);
  if (api != nullptr) {
    if (path == library_path) return;
    throw OrtFailure(ORT_FAIL, "ONNX Runtime: library must be " + library_path +
                                   ", which this process has loaded, received " + path);
  }
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) throw OrtFailure(ORT_NO_SUCHFILE, dlerror());
  using GetApiBase = const OrtApiBase* (*)();
  const auto get_base = reinterpret_cast<GetApiBase>(dlsym(handle, "OrtGetApiBase"));
  if (get_base == nullptr) throw OrtFailure(ORT_FAIL, path + ": has no OrtGetApiBase");
  base = get_base();
  const uint32_t newest =
      std::min<uint32_t>(ORT_API_VERSION, minor_version(base->GetVersionString()));
  for (uint32_t v = newest; v >= kOldestApi && api == nullptr; --v) {
    api = base->GetApi(v);
    api_version = v;
  }
  if (api == nullptr) {
    throw OrtFailure(ORT_FAIL, "ONNX Runtime: version must be >= 1." + std::to_string(kOldestApi) +
                                   ", received " + base->GetVersionString() + " (" + path + ")");
  }
  library_path = path;
}

const OrtApi& ort() { return *api; }

std::string ort_version() { return base->GetVersionString(); }

uint32_t ort_api_version() { return api_version; }

std::vector<std::string> ort_providers() {
  char** names = nullptr;
  int count = 0;
  check(ort().GetAvailableProviders(&names, &count));
  std::vector<std::string> providers(names, names + count);
  check(ort().ReleaseAvailableProviders(names, count));
  return providers;
}

void check(OrtStatus* status) {
  if (status == nullptr) return;
  const OrtFailure failure(ort().GetErrorCode(status), ort().GetErrorMessage(status));
  ort().ReleaseStatus(status);
  throw failure;
}

std::shared_ptr<Environment> Environment::acquire(int log_level) {
  std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Environment> current = environment.lock();
  if (current == nullptr) {
    current.reset(new Environment(log_level));
    environment = current;
  }
  return current;
}

Environment::Environment(int log_level) {
  check(ort().CreateEnv(static_cast<OrtLoggingLevel>(log_level), "onnx-fla", &env_));
}

Environment::~Environment() { ort().ReleaseEnv(env_); }

const OrtMemoryInfo* cpu_memory() {
  static const OrtMemoryInfo* info = [] {
    OrtMemoryInfo* made = nullptr;
    check(ort().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &made));
    return made;
  }();
  return info;
}

OrtAllocator* default_allocator() {
  OrtAllocator* allocator = nullptr;
  check(ort().GetAllocatorWithDefaultOptions(&allocator));
  return allocator;
}

std::string take_string(char* text) {
  std::string copy(text);
  default_allocator()->Free(default_allocator(), text);
  return copy;
}

}  // namespace fla
