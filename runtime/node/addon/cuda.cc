#include "cuda.h"

#include <dlfcn.h>

#include <cstdint>
#include <string>

#include "ort.h"

namespace fla::cuda {
namespace {

using Context = struct CUctx_st*;
using Address = unsigned long long;

// The driver's functions that are needed here, by the names under which it exports them.
struct Driver {
  int (*init)(unsigned flags);
  int (*get_device)(int* device, int ordinal);
  int (*retain_context)(Context* context, int device);
  int (*release_context)(int device);
  int (*push_context)(Context context);
  int (*pop_context)(Context* context);
  int (*to_host)(void* to, Address from, size_t bytes);
  int (*to_device)(Address to, const void* from, size_t bytes);
  int (*on_device)(Address to, Address from, size_t bytes);
  int (*fill)(Address to, unsigned char value, size_t bytes);
  int (*synchronize)();
  int (*error_string)(int error, const char** text);
};

template <typename F>
void find(void* library, const char* name, F* function) {
  *function = reinterpret_cast<F>(dlsym(library, name));
  if (*function == nullptr) throw OrtFailure(ORT_EP_FAIL, std::string("libcuda.so.1: no ") + name);
}

Driver open_driver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw OrtFailure(ORT_EP_FAIL, dlerror());
  Driver driver;
  find(library, "cuInit", &driver.init);
  find(library, "cuDeviceGet", &driver.get_device);
  find(library, "cuDevicePrimaryCtxRetain", &driver.retain_context);
  find(library, "cuDevicePrimaryCtxRelease_v2", &driver.release_context);
  find(library, "cuCtxPushCurrent_v2", &driver.push_context);
  find(library, "cuCtxPopCurrent_v2", &driver.pop_context);
  find(library, "cuMemcpyDtoH_v2", &driver.to_host);
  find(library, "cuMemcpyHtoD_v2", &driver.to_device);
  find(library, "cuMemcpyDtoD_v2", &driver.on_device);
  find(library, "cuMemsetD8_v2", &driver.fill);
  find(library, "cuCtxSynchronize", &driver.synchronize);
  find(library, "cuGetErrorString", &driver.error_string);
  return driver;
}

const Driver& driver() {
  static const Driver opened = open_driver();
  return opened;
}

void check_cuda(int error) {
  if (error == 0) return;
  const char* text = nullptr;
  driver().error_string(error, &text);
  throw OrtFailure(ORT_EP_FAIL, std::string("CUDA: ") + (text ? text : "unknown error"));
}

// The context that ONNX Runtime's CUDA provider uses, made current for this scope.
class Current {
 public:
  explicit Current(int ordinal) {
    check_cuda(driver().init(0));
    check_cuda(driver().get_device(&device_, ordinal));
    Context context = nullptr;
    check_cuda(driver().retain_context(&context, device_));
    if (const int error = driver().push_context(context)) {
      driver().release_context(device_);
      check_cuda(error);
    }
  }
  ~Current() {
    Context context = nullptr;
    driver().pop_context(&context);
    driver().release_context(device_);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  int device_ = 0;
};

Address address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

}  // namespace

void to_host(int device, void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  const Current current(device);
  check_cuda(driver().to_host(to, address(from), bytes));
}

void to_device(int device, void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  const Current current(device);
  check_cuda(driver().to_device(address(to), from, bytes));
  check_cuda(driver().synchronize());  // a small copy returns before it has arrived
}

void on_device(int device, void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  const Current current(device);
  check_cuda(driver().on_device(address(to), address(from), bytes));
  check_cuda(driver().synchronize());
}

void zero(int device, void* to, size_t bytes) {
  if (bytes == 0) return;
  const Current current(device);
  check_cuda(driver().fill(address(to), 0, bytes));
  check_cuda(driver().synchronize());
}

}  // namespace fla::cuda
