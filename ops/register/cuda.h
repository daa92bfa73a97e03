// Small helpers over the CUDA runtime, for builds that have the CUDA kernels.
#ifndef FLA_OPS_REGISTER_CUDA_H_
#define FLA_OPS_REGISTER_CUDA_H_

#include <cuda_runtime_api.h>

#include <string>

namespace fla {

constexpr const char* kCudaProvider = "CUDAExecutionProvider";

// "" for success, else CUDA's words.
inline std::string cuda_problem(cudaError_t error) {
  return error == cudaSuccess ? "" : std::string("CUDA: ") + cudaGetErrorString(error);
}

// GPUs that this process sees; 0 where there is no driver.
inline int cuda_devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

}  // namespace fla

#endif  // FLA_OPS_REGISTER_CUDA_H_
