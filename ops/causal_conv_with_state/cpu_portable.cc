#include "ops/causal_conv_with_state/cpu_kernel.h"

namespace fla {

bool causal_conv_with_state_portable(const CausalConvWithStateParams& params,
                                     const Parallel& parallel) {
  return run(params, parallel);
}

}  // namespace fla
