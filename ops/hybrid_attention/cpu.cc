// HybridAttention on the CPU: the choice of ISA. The kernel: cpu_kernel.h.
#include "ops/hybrid_attention/cpu.h"

#include <cstring>

namespace fla {

bool hybrid_attention_portable(const HybridAttentionParams&, const Parallel&);
#if defined(__x86_64__)
bool hybrid_attention_avx2(const HybridAttentionParams&, const Parallel&);
bool hybrid_attention_avx512(const HybridAttentionParams&, const Parallel&);
#endif

namespace {

using Kernel = bool (*)(const HybridAttentionParams&, const Parallel&);

Kernel choose() {
#if defined(__x86_64__)
  if (!std::strcmp(cpu_isa(), "avx512")) return hybrid_attention_avx512;
  if (!std::strcmp(cpu_isa(), "avx2")) return hybrid_attention_avx2;
#endif
  return hybrid_attention_portable;
}

}  // namespace

bool hybrid_attention_cpu(const HybridAttentionParams& params, const Parallel& parallel) {
  static const Kernel kernel = choose();
  return kernel(params, parallel);
}

}  // namespace fla
