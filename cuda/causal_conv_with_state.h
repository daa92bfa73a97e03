// CausalConvWithState on a CUDA device. Semantics: ops/causal_conv_with_state/README.md.
#ifndef FLA_CUDA_CAUSAL_CONV_WITH_STATE_H_
#define FLA_CUDA_CAUSAL_CONV_WITH_STATE_H_

#include <cuda_runtime_api.h>

#include "ops/causal_conv_with_state/cpu.h"

namespace fla {

// Enqueues the op on `stream` of the current device; the parameters are those of the CPU kernel
// with device pointers. Needs no workspace, never synchronises. Returns the launch's error.
cudaError_t causal_conv_with_state_cuda(const CausalConvWithStateParams& params,
                                        cudaStream_t stream);

}  // namespace fla

#endif  // FLA_CUDA_CAUSAL_CONV_WITH_STATE_H_
