#include "cuda/linear_attention_delta.cuh"

namespace fla::cuda::delta {

cudaError_t launch_walk_f32(const Plan& plan, bool output, cudaStream_t stream) {
  return launch_walk_with<float, MmaTf32<3>>(plan, output, stream);
}

}  // namespace fla::cuda::delta
