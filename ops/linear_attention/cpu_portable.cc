#include "ops/linear_attention/cpu_kernel.h"

namespace fla {

bool linear_attention_portable(const LinearAttentionParams& params, const Parallel& parallel) {
  return run(params, parallel);
}

}  // namespace fla
