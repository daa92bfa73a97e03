// CausalConvWithState on the CPU: depthwise causal 1-D convolution that carries its last kernel-1
// inputs.
//   x = [past_state | input] along time;  output[t] = act(bias + sum_j weight[j] x[t + j])
#ifndef FLA_OPS_CAUSAL_CONV_WITH_STATE_CPU_H_
#define FLA_OPS_CAUSAL_CONV_WITH_STATE_CPU_H_

#include <cstdint>

#include "ops/common/cpu.h"

namespace fla {

struct CausalConvWithStateParams {
  int64_t B = 0;       // batch
  int64_t C = 0;       // channels
  int64_t T = 0;       // length, may be 0
  int64_t kernel = 0;  // >= 1
  bool silu = false;   // activation: silu (= swish) or none

  DType io = DType::kFloat32;  // every tensor

  const void* input = nullptr;       // [B, C, T]
  const void* weight = nullptr;      // [C, 1, kernel]
  const void* bias = nullptr;        // [C]; null means zeros
  const void* past_state = nullptr;  // [B, C, kernel-1]; null means zeros; may equal present_state

  void* output = nullptr;         // [B, C, T]
  void* present_state = nullptr;  // [B, C, kernel-1]; null when the caller has no use for it
};

// Runs the op, accumulating in float32. Does not throw; returns false only when memory ran out.
bool causal_conv_with_state_cpu(const CausalConvWithStateParams& params, const Parallel& parallel);

}  // namespace fla

#endif  // FLA_OPS_CAUSAL_CONV_WITH_STATE_CPU_H_
