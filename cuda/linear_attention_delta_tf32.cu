#include "cuda/linear_attention_delta.cuh"

namespace fla::cuda::delta {

cudaError_t launch_walk_tf32(const Plan& plan, bool output, cudaStream_t stream) {
  return launch_walk_with<AnyHalf, MmaTf32<1>>(plan, output, stream);
}

}  // namespace fla::cuda::delta
