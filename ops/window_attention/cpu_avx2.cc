#include "ops/hybrid_attention/cpu_kernel.h"

namespace fla {

bool window_attention_avx2(const HybridAttentionParams& params, const Parallel& parallel) {
  return run(params, false, parallel);
}

}  // namespace fla
