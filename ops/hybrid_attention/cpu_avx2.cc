#include "ops/hybrid_attention/cpu_kernel.h"

namespace fla {

bool hybrid_attention_avx2(const HybridAttentionParams& params, const Parallel& parallel) {
  return run(params, true, parallel);
}

}  // namespace fla
