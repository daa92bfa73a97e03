#include "cuda/linear_attention_delta.cuh"

namespace fla::cuda::delta {

cudaError_t launch_walk_f16(const Plan& plan, bool output, cudaStream_t stream) {
  return launch_walk_with<f16, MmaF16, false>(plan, output, stream);
}

}  // namespace fla::cuda::delta
