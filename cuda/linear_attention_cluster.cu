// Rule linear in one pass by thread block clusters: when it applies, and its launch. The kernel:
// linear_attention_cluster.cuh.
#include <atomic>
#include <cmath>

#include "cuda/linear_attention_cluster.cuh"
#include "cuda/linear_attention_kernels.h"

namespace fla::cuda {
namespace cluster {
namespace {

constexpr int kMostDevices = 64;
constexpr int kBlocks = 132;  // of an H100 at a time
constexpr int kRanks[] = {16, 8, 4, 2};

using Kernel = void (*)(Args);

Kernel kernel_of(int ranks) {
  switch (ranks) {
    case 16:
      return linear_cluster_kernel<16>;
    case 8:
      return linear_cluster_kernel<8>;
    case 4:
      return linear_cluster_kernel<4>;
    default:
      return linear_cluster_kernel<2>;
  }
}

struct Launch {
  cudaLaunchAttribute attribute = {};
  cudaLaunchConfig_t config = {};

  Launch(int ranks, int64_t heads, cudaStream_t stream) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(ranks), 1, 1};
    config.gridDim = dim3(static_cast<unsigned>(heads * ranks));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = sizeof(Shared);
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
};

// Clusters that the current device runs at a time; 0 where it has none, or the code lacks sm_90a.
int count_clusters(int ranks) {
  const Kernel kernel = kernel_of(ranks);
  cudaFuncAttributes attributes;
  int count = 0;
  if (cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.sharedSizeBytes > 0 &&
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)) ==
          cudaSuccess &&
      cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) ==
          cudaSuccess) {
    const Launch launch(ranks, kBlocks / ranks, nullptr);
    if (cudaOccupancyMaxActiveClusters(&count, kernel, &launch.config) == cudaSuccess) return count;
  }
  cudaGetLastError();
  return 0;
}

int clusters(int ranks) {
  static std::atomic<int> known[kMostDevices][4];  // count + 1; 0: not asked yet
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMostDevices) return 0;
  int index = 0;
  while (kRanks[index] != ranks) ++index;
  std::atomic<int>& entry = known[device][index];
  if (entry == 0) entry = count_clusters(ranks) + 1;
  return entry - 1;
}

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                            CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                            CUtensorMapFloatOOBfill);

// The driver's function; null where there is none.
Encode encode_function() {
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &result);
    if (error != cudaSuccess) cudaGetLastError();
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess
               ? reinterpret_cast<Encode>(function)
               : nullptr;
  }();
  return encode;
}

// [B, T, heads, size] of bf16, read or written in boxes of `tokens` tokens of one head.
bool make_map(CUtensorMap* map, const void* data, const LinearAttentionParams& p, int64_t heads,
              int64_t size, int tokens) {
  const auto u64 = [](int64_t x) { return static_cast<cuuint64_t>(x); };
  const cuuint64_t dims[] = {u64(size), u64(heads), u64(p.T), u64(p.B)};
  const cuuint64_t strides[] = {u64(2 * size), u64(2 * size * heads), u64(2 * size * heads * p.T)};
  const cuuint32_t box[] = {64, 1, static_cast<cuuint32_t>(tokens), 1}, steps[] = {1, 1, 1, 1};
  return encode_function()(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<void*>(data), dims,
                           strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                           CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                           CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Blocks per head; 0 when the kernel does not take the call.
int ranks_of(const LinearAttentionParams& p) {
  const bool plain = p.rule == UpdateRule::kLinear && p.feature_map == FeatureMap::kIdentity &&
                     !p.qk_l2norm && !p.normalize && !p.mask && p.read != ReadMode::kBonus &&
                     p.causal;
  if (!clusters_enabled || !plain || p.io != DType::kBFloat16 || p.K > 64 || p.V > 64 || p.K % 8 ||
      p.V % 8 || p.Hq > p.HV) {
    return 0;
  }
  const int64_t heads = p.B * p.HV;
  for (const int ranks : kRanks) {
    // With few blocks, or a single step, the two passes are no slower.
    const bool fits = heads * ranks <= kBlocks, fills = heads * ranks > kBlocks / 3;
    if (!fits || p.T <= ranks * kTokens) continue;
    if (!fills) return 0;
    if (clusters(ranks) >= heads) return encode_function() ? ranks : 0;
  }
  return 0;
}

}  // namespace
}  // namespace cluster

bool clusters_enabled = true;

bool linear_attention_cluster_takes(const LinearAttentionParams& p) {
  return cluster::ranks_of(p) > 0;
}

cudaError_t launch_linear_attention_cluster(const LinearAttentionParams& p, cudaStream_t stream) {
  using namespace cluster;
  const int ranks = ranks_of(p);
  if (!ranks || !aligned(p.query) || !aligned(p.key) || !aligned(p.value) || !aligned(p.output)) {
    return cudaErrorNotSupported;
  }
  Args args;
  if (!make_map(&args.query, p.query, p, p.Hq, p.K, kTokens) ||
      !make_map(&args.key, p.key, p, p.Hk, p.K, kTokens) ||
      !make_map(&args.value, p.value, p, p.HV, p.V, kTokens) ||
      !make_map(&args.output, p.output, p, p.HV, p.V, kTokens / 2)) {
    return cudaErrorNotSupported;
  }
  args.past_state = p.past_state;
  args.present_state = p.present_state;
  args.T = static_cast<int>(p.T);
  args.Hq = static_cast<int>(p.Hq);
  args.Hk = static_cast<int>(p.Hk);
  args.HV = static_cast<int>(p.HV);
  args.K = static_cast<int>(p.K);
  args.V = static_cast<int>(p.V);
  args.steps = static_cast<int>((p.T + ranks * kTokens - 1) / (ranks * kTokens));
  args.scale = p.scale != 0.f ? p.scale : 1.f / std::sqrt(static_cast<float>(p.K));
  args.before = p.read != ReadMode::kAfter;
  args.state_type = p.state;
  const Launch launch(ranks, p.B * p.HV, stream);
  return cudaLaunchKernelEx(&launch.config, kernel_of(ranks), args);
}

}  // namespace fla::cuda
