// WindowAttention on the CPU: HybridAttention's kernel without a far part, and the choice of ISA.
#include "ops/window_attention/cpu.h"

#include <cstring>

#include "ops/hybrid_attention/cpu.h"

namespace fla {

bool window_attention_portable(const HybridAttentionParams&, const Parallel&);
#if defined(__x86_64__)
bool window_attention_avx2(const HybridAttentionParams&, const Parallel&);
bool window_attention_avx512(const HybridAttentionParams&, const Parallel&);
#endif

namespace {

using Kernel = bool (*)(const HybridAttentionParams&, const Parallel&);

Kernel choose() {
#if defined(__x86_64__)
  if (!std::strcmp(cpu_isa(), "avx512")) return window_attention_avx512;
  if (!std::strcmp(cpu_isa(), "avx2")) return window_attention_avx2;
#endif
  return window_attention_portable;
}

}  // namespace

bool window_attention_cpu(const WindowAttentionParams& params, const Parallel& parallel) {
  static const Kernel kernel = choose();
  HybridAttentionParams hybrid;
  static_cast<WindowAttentionParams&>(hybrid) = params;
  return kernel(hybrid, parallel);
}

}  // namespace fla
