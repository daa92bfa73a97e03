// LinearAttention on a CUDA device: workspace query and launcher. Semantics:
// ops/linear_attention/README.md.
//
// The parameters are those of the CPU kernel with device pointers in place of host pointers. No
// host memory is touched, nothing is allocated, the stream is never synchronised, so calls can be
// captured into a CUDA graph. Results are a pure function of the inputs and of
// how tensors are aligned: same bits on every run.
#ifndef FLA_CUDA_LINEAR_ATTENTION_H_
#define FLA_CUDA_LINEAR_ATTENTION_H_

#include <cuda_runtime_api.h>

#include <cstddef>

#include "ops/linear_attention/cpu.h"

namespace fla {

// Bytes of scratch that linear_attention_cuda needs for this call; depends on shapes and options
// only (and on whether there is a mask), not on addresses. May be 0. At most 64 MB, or, where
// several blocks read one state, one float32 copy of all states if that is more.
size_t linear_attention_cuda_workspace(const LinearAttentionParams& params);

// Enqueues the op on `stream` of the current device. `workspace` must be 256-byte aligned, hold
// linear_attention_cuda_workspace(params) bytes, need no initialisation, and may be reused by later
// work on the same stream. Returns cudaErrorInvalidValue for sizes outside K, V in [1, 256],
// otherwise the launch's error. Requires compute capability 8.0.
cudaError_t linear_attention_cuda(const LinearAttentionParams& params, void* workspace,
                                  cudaStream_t stream);

}  // namespace fla

#endif  // FLA_CUDA_LINEAR_ATTENTION_H_
