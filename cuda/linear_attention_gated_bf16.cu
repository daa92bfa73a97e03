#include "cuda/linear_attention_gated_launch.cuh"

namespace fla::cuda {

cudaError_t launch_gated_bf16(GatedArgs args, int B, bool general, cudaStream_t stream) {
  if (args.decay_kind == DecayKind::kPerKey) {
    return launch_gated_sizes<bf16, MmaBf16, true, true>(args, B, stream);
  }
  return general ? launch_gated_sizes<bf16, MmaBf16, true>(args, B, stream)
                 : launch_gated_sizes<bf16, MmaBf16, false>(args, B, stream);
}

}  // namespace fla::cuda
