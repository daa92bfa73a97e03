// Half precision cannot hold the state nor every feature, and bfloat16 would cost 3 bits: tf32 has
// the mantissa of the one and the range of the other.
#include "cuda/linear_attention_gated_launch.cuh"

namespace fla::cuda {

cudaError_t launch_gated_f16(GatedArgs args, int B, bool general, cudaStream_t stream) {
  return general ? launch_gated_sizes<f16, MmaTf32<1>, true>(args, B, stream)
                 : launch_gated_sizes<f16, MmaTf32<1>, false>(args, B, stream);
}

}  // namespace fla::cuda
