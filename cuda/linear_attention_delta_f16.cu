#include "cuda/linear_attention_delta.cuh"

namespace fla::cuda::delta {

// Per-key decay multiplies keys by factors beyond the range of f16.
template <>
cudaError_t launch_walk<f16>(const Plan& plan, bool output, cudaStream_t stream) {
  return launch_walk_with<f16, MmaF16, MmaTf32<1>>(plan, output, stream);
}

}  // namespace fla::cuda::delta
