// Launch of the two passes for one configuration; included by one source per element type.
#ifndef FLA_CUDA_LINEAR_ATTENTION_GATED_LAUNCH_CUH_
#define FLA_CUDA_LINEAR_ATTENTION_GATED_LAUNCH_CUH_

#include "cuda/linear_attention_gated_output.cuh"
#include "cuda/linear_attention_gated_states.cuh"

namespace fla::cuda {

// Shared memory a block may use on the current device, and whether dependent launches are
// supported.
struct DeviceLimits {
  int shared_bytes = 0;
  bool dependent_launch = false;
};
DeviceLimits device_limits();

cudaError_t launch_gated_scan(const GatedArgs& args, int B, cudaStream_t stream, bool dependent);

// cudaErrorNotSupported when the tiles do not fit the device's shared memory; nothing is launched
// then.
cudaError_t launch_gated_bf16(GatedArgs args, int B, bool general, cudaStream_t stream);
cudaError_t launch_gated_f16(GatedArgs args, int B, bool general, cudaStream_t stream);
cudaError_t launch_gated_f32(GatedArgs args, int B, cudaStream_t stream);

template <typename Cfg>
bool fits(GatedArgs& args, const DeviceLimits& limits, bool output) {
  for (args.stages = 2; args.stages > 0; --args.stages) {
    if (GatedLayout<Cfg>(args, output).total <= limits.shared_bytes) return true;
  }
  return false;
}

template <typename Cfg>
cudaError_t launch_gated_config(const GatedArgs& args, int B, cudaStream_t stream) {
  const DeviceLimits limits = device_limits();
  GatedArgs output_args = args, states_args = args;
  if (!fits<Cfg>(output_args, limits, true)) return cudaErrorNotSupported;
  const int output_bytes = GatedLayout<Cfg>(output_args, true).total;
  cudaError_t error = cudaFuncSetAttribute(
      gated_output_kernel<Cfg>, cudaFuncAttributeMaxDynamicSharedMemorySize, output_bytes);
  if (error != cudaSuccess) return error;

  const unsigned tiles = (args.V + Cfg::VP - 1) / Cfg::VP;
  const bool sums_needed = args.segments > 1 || !args.causal;
  if (sums_needed) {
    using StatesCfg = typename Cfg::WithoutRests;
    fits<StatesCfg>(states_args, limits, false);
    const int states_bytes = GatedLayout<StatesCfg>(states_args, false).total;
    error = cudaFuncSetAttribute(gated_states_kernel<StatesCfg>,
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, states_bytes);
    if (error != cudaSuccess) return error;
    const dim3 grid(static_cast<unsigned>(B) * args.HV * args.segments, tiles);
    gated_states_kernel<StatesCfg><<<grid, Cfg::kThreads, states_bytes, stream>>>(states_args);
  }
  const bool dependent = limits.dependent_launch;
  if (args.states_in_workspace) {
    error = launch_gated_scan(args, B, stream, dependent && sums_needed);
    if (error != cudaSuccess) return error;
  }
  const dim3 grid(static_cast<unsigned>(B) * args.HO * args.segments, tiles);
  if (dependent && args.states_in_workspace) {
    return launch_dependent(gated_output_kernel<Cfg>, grid, dim3(Cfg::kThreads), output_bytes,
                            stream, output_args);
  }
  gated_output_kernel<Cfg><<<grid, Cfg::kThreads, output_bytes, stream>>>(output_args);
  return cudaGetLastError();
}

template <typename IO, typename Mma, bool General, bool Split = false>
cudaError_t launch_gated_sizes(const GatedArgs& args, int B, cudaStream_t stream) {
  if (args.K <= 64) {
    return launch_gated_config<GatedConfig<IO, Mma, 64, General, Split>>(args, B, stream);
  }
  if (args.K <= 128) {
    return launch_gated_config<GatedConfig<IO, Mma, 128, General, Split>>(args, B, stream);
  }
  return launch_gated_config<GatedConfig<IO, Mma, 256, true, Split>>(args, B, stream);
}

}  // namespace fla::cuda

#endif  // FLA_CUDA_LINEAR_ATTENTION_GATED_LAUNCH_CUH_
