#include "cuda/linear_attention_gated_launch.cuh"

namespace fla::cuda {

cudaError_t launch_gated_f32(GatedArgs args, int B, cudaStream_t stream) {
  return launch_gated_sizes<float, MmaTf32<3>, true>(args, B, stream);
}

}  // namespace fla::cuda
