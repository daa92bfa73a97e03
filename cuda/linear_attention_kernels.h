// The kernel families behind linear_attention.h; linear_attention.cu chooses between them.
#ifndef FLA_CUDA_LINEAR_ATTENTION_KERNELS_H_
#define FLA_CUDA_LINEAR_ATTENTION_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstddef>

#include "ops/linear_attention/cpu.h"

namespace fla::cuda {

// Tokens from which the chunked kernels take over from the recurrent one.
constexpr int64_t kMinChunkedTokens = 32;

// Rules linear and gated, chunked. linear_attention_gated.cu
size_t linear_attention_gated_workspace(const LinearAttentionParams& p);
cudaError_t launch_linear_attention_gated(const LinearAttentionParams& p, void* workspace,
                                          cudaStream_t stream);

// Rule linear in one pass by thread block clusters, where `takes` (shapes, options and the current
// device); without workspace. cudaErrorNotSupported, and nothing is launched, when a tensor is not
// aligned to 16 bytes. linear_attention_cluster.cu
bool linear_attention_cluster_takes(const LinearAttentionParams& p);
cudaError_t launch_linear_attention_cluster(const LinearAttentionParams& p, cudaStream_t stream);
// For tests and benches: false keeps to the two passes.
extern bool clusters_enabled;

// Rules delta and gated_delta, chunked. linear_attention_delta.cu
size_t linear_attention_delta_workspace(const LinearAttentionParams& p);
cudaError_t launch_linear_attention_delta(const LinearAttentionParams& p, void* workspace,
                                          cudaStream_t stream);

// All rules, one token after the other, for T < kMinChunkedTokens. linear_attention_decode.cu
cudaError_t launch_linear_attention_decode(const LinearAttentionParams& p, cudaStream_t stream);

// One token with the usual options, where `takes`. linear_attention_token.cu
bool linear_attention_token_takes(const LinearAttentionParams& p);
cudaError_t launch_linear_attention_token(const LinearAttentionParams& p, cudaStream_t stream);

// The same with the normaliser. linear_attention_token_normalized.cu
bool linear_attention_token_normalized_takes(const LinearAttentionParams& p);
cudaError_t launch_linear_attention_token_normalized(const LinearAttentionParams& p,
                                                     cudaStream_t stream);

}  // namespace fla::cuda

#endif  // FLA_CUDA_LINEAR_ATTENTION_KERNELS_H_
