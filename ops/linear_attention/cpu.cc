// LinearAttention on the CPU: what needs no vector code, and the choice of ISA. The kernel:
// cpu_kernel.h.
#include "ops/linear_attention/cpu.h"

#include <cstring>

namespace fla {

bool linear_attention_portable(const LinearAttentionParams&, const Parallel&);
#if defined(__x86_64__)
bool linear_attention_avx2(const LinearAttentionParams&, const Parallel&);
bool linear_attention_avx512(const LinearAttentionParams&, const Parallel&);
#endif

namespace {

using Kernel = bool (*)(const LinearAttentionParams&, const Parallel&);

Kernel choose() {
#if defined(__x86_64__)
  if (!std::strcmp(cpu_isa(), "avx512")) return linear_attention_avx512;
  if (!std::strcmp(cpu_isa(), "avx2")) return linear_attention_avx2;
#endif
  return linear_attention_portable;
}

// No tokens: the state passes through.
void pass_state(const LinearAttentionParams& p) {
  const size_t width = p.state == DType::kFloat32 ? 4 : 2;
  const size_t bytes = width * p.B * p.HV * p.K * (p.V + (p.normalize ? 1 : 0));
  if (!p.present_state || p.present_state == p.past_state) return;
  if (p.past_state)
    std::memcpy(p.present_state, p.past_state, bytes);
  else
    std::memset(p.present_state, 0, bytes);
}

}  // namespace

bool linear_attention_cpu(const LinearAttentionParams& p, const Parallel& parallel) {
  static const Kernel kernel = choose();
  if (p.B == 0) return true;
  if (p.T == 0) return pass_state(p), true;
  return kernel(p, parallel);
}

}  // namespace fla
