// Entry points of linear_attention.h: checks sizes and picks the kernel family.
#include "cuda/linear_attention.h"
#include "cuda/linear_attention_kernels.h"

namespace fla {
namespace {

bool is_delta(const LinearAttentionParams& p) {
  return p.rule == UpdateRule::kDelta || p.rule == UpdateRule::kGatedDelta;
}

// Few key dims make the delta rules sensitive to the 16-bit operands of the chunked kernels: with
// one, an error of the state is an error of (v - S'k) as large.
bool is_chunked(const LinearAttentionParams& p) {
  constexpr int64_t kFewKeyDims = 8;
  const bool sensitive = is_delta(p) && p.K < kFewKeyDims && p.io != DType::kFloat32;
  return p.T >= cuda::kMinChunkedTokens && !sensitive;
}

}  // namespace

size_t linear_attention_cuda_workspace(const LinearAttentionParams& p) {
  if (p.B == 0 || p.HV == 0 || !is_chunked(p)) return 0;
  return is_delta(p) ? cuda::linear_attention_delta_workspace(p)
                     : cuda::linear_attention_gated_workspace(p);
}

cudaError_t linear_attention_cuda(const LinearAttentionParams& p, void* workspace,
                                  cudaStream_t stream) {
  if (p.K < 1 || p.K > 256 || p.V < 1 || p.V > 256) return cudaErrorInvalidValue;
  if (p.B == 0 || p.HV == 0) return cudaSuccess;
  if (is_chunked(p)) {
    const cudaError_t error = is_delta(p)
                                  ? cuda::launch_linear_attention_delta(p, workspace, stream)
                                  : cuda::launch_linear_attention_gated(p, workspace, stream);
    if (error != cudaErrorNotSupported) return error;
  }
  return cuda::launch_linear_attention_decode(p, stream);
}

}  // namespace fla
