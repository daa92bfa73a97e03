// CausalConvWithState on the CPU: the choice of ISA. The kernel: cpu_kernel.h.
#include "ops/causal_conv_with_state/cpu.h"

#include <cstring>

namespace fla {

bool causal_conv_with_state_portable(const CausalConvWithStateParams&, const Parallel&);
#if defined(__x86_64__)
bool causal_conv_with_state_avx2(const CausalConvWithStateParams&, const Parallel&);
bool causal_conv_with_state_avx512(const CausalConvWithStateParams&, const Parallel&);
#endif

namespace {

using Kernel = bool (*)(const CausalConvWithStateParams&, const Parallel&);

Kernel choose() {
#if defined(__x86_64__)
  if (!std::strcmp(cpu_isa(), "avx512")) return causal_conv_with_state_avx512;
  if (!std::strcmp(cpu_isa(), "avx2")) return causal_conv_with_state_avx2;
#endif
  return causal_conv_with_state_portable;
}

}  // namespace

bool causal_conv_with_state_cpu(const CausalConvWithStateParams& params, const Parallel& parallel) {
  static const Kernel kernel = choose();
  return kernel(params, parallel);
}

}  // namespace fla
