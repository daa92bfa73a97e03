// Rules linear and gated: plan, scan over the segments, choice of the kernel. See
// linear_attention_gated.cuh.
#include <algorithm>
#include <cmath>

#include "cuda/linear_attention_gated_launch.cuh"
#include "cuda/linear_attention_kernels.h"

namespace fla::cuda {
namespace {

constexpr size_t kAlignment = 256;

bool is_general(const LinearAttentionParams& p) {
  return p.feature_map != FeatureMap::kIdentity || p.qk_l2norm || p.normalize || p.mask ||
         p.read == ReadMode::kBonus || p.decay_kind == DecayKind::kPerKey;
}

// Blocks that the two passes should have at least: what fits the 132 multiprocessors of a large GPU
// at once. A constant, so that the order of summation, and with it every bit of the result, depends
// on the shape alone.
int64_t target_blocks(const LinearAttentionParams& p) {
  if (p.K > 64) return 132;
  return 132 * (is_general(p) && p.io != DType::kBFloat16 ? 2 : 3);
}

// From this many independent states on, reading the inputs once beats filling the GPU.
int64_t enough_states(const LinearAttentionParams& p) { return p.K > 64 ? 100 : 200; }

struct Plan {
  int64_t segments, segment_chunks;
  bool states_in_workspace;
  size_t state_bytes, decay_bytes;
};

// `one_segment`: no workspace, if the call itself allows that.
Plan plan_of(const LinearAttentionParams& p, bool one_segment) {
  const int64_t chunk = p.K > 128 ? 32 : 64;
  const int64_t tile = p.K > 64 && p.K <= 128 ? 128 : 64;
  const int64_t tiles = (p.V + tile - 1) / tile, chunks = (p.T + chunk - 1) / chunk;
  const int64_t blocks = p.B * p.HV * tiles;
  Plan plan;
  int64_t segments = 1;
  if (blocks < enough_states(p) && !one_segment) {
    segments = std::max<int64_t>(1, std::min((chunks + 1) / 2, target_blocks(p) / blocks));
  }
  plan.segment_chunks = (chunks + segments - 1) / segments;
  plan.segments = (chunks + plan.segment_chunks - 1) / plan.segment_chunks;
  // Several blocks read one state that one of them replaces, perhaps in place: read it from a copy.
  const bool shared_state = p.Hq > p.HV || (p.normalize && tiles > 1);
  plan.states_in_workspace = plan.segments > 1 || shared_state || !p.causal;
  const int64_t states = p.B * p.HV * plan.segments;
  const int64_t decays = states * (p.decay_kind == DecayKind::kPerKey ? p.K : 1);
  const auto padded = [](int64_t n) { return (n * 4 + kAlignment - 1) / kAlignment * kAlignment; };
  plan.state_bytes = plan.states_in_workspace ? padded(states * p.K * (p.V + p.normalize)) : 0;
  plan.decay_bytes = plan.states_in_workspace ? padded(decays) : 0;
  return plan;
}

bool aligned(const void* p, int64_t columns, int element) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && columns * element % 16 == 0;
}

GatedArgs args_of(const LinearAttentionParams& p, const Plan& plan, void* workspace) {
  GatedArgs a = {};
  const int io = size_of(p.io);
  a.T = static_cast<int>(p.T);
  a.Hq = static_cast<int>(p.Hq);
  a.Hk = static_cast<int>(p.Hk);
  a.HV = static_cast<int>(p.HV);
  a.HO = std::max(a.Hq, a.HV);
  a.K = static_cast<int>(p.K);
  a.V = static_cast<int>(p.V);
  a.W = a.V + (p.normalize ? 1 : 0);
  a.segments = static_cast<int>(plan.segments);
  a.segment_chunks = static_cast<int>(plan.segment_chunks);
  a.scale = p.scale != 0.f ? p.scale : 1.f / std::sqrt(static_cast<float>(p.K));
  a.causal = p.causal;
  a.normalize = p.normalize;
  a.before = p.read != ReadMode::kAfter;
  a.bonus = p.read == ReadMode::kBonus;
  a.l2norm = p.qk_l2norm;
  a.feature_map = p.feature_map;
  a.decay_kind = p.rule == UpdateRule::kGated ? p.decay_kind : DecayKind::kNone;
  a.decay_type = p.decay_dtype;
  a.mask_type = p.mask_dtype;
  a.bonus_type = p.bonus_dtype;
  a.state_type = p.state;
  a.vector_qk = aligned(p.query, p.K, io) && aligned(p.key, p.K, io);
  a.vector_v = aligned(p.value, p.V, io);
  a.vector_g = aligned(p.decay, p.K, size_of(p.decay_dtype));
  a.vector_o = aligned(p.output, p.V, io);
  a.states_in_workspace = plan.states_in_workspace;
  a.query = p.query;
  a.key = p.key;
  a.value = p.value;
  a.past_state = p.past_state;
  a.decay = p.decay;
  a.mask = p.mask;
  a.bonus_u = p.bonus;
  a.output = p.output;
  a.present_state = p.present_state;
  a.segment_state = static_cast<float*>(workspace);
  a.segment_decay =
      reinterpret_cast<float*>(static_cast<unsigned char*>(workspace) + plan.state_bytes);
  return a;
}

// Turns what each segment adds into the state before it. Thread = one element of one state; the
// order of the sums is that of the segments. Not causal: slot 0 becomes the state after all
// segments. kAhead loads are in flight at a time.
template <int kAhead>
__global__ void __launch_bounds__(128) gated_scan_kernel(const __grid_constant__ GatedArgs p) {
  const int size = p.K * p.W, i = blockIdx.y * 128 + threadIdx.x;
  const int64_t head = blockIdx.x;
  wait_for_previous_grid();
  allow_next_grid();
  if (i >= size) return;
  float* states = p.segment_state + head * p.segments * size + i;
  const bool per_key = p.decay_kind == DecayKind::kPerKey;
  const int stride = per_key ? p.K : 1;
  const float* decays = p.segment_decay + head * p.segments * stride + (per_key ? i / p.W : 0);
  const int sums = p.causal ? p.segments - 1 : p.segments;
  float x = p.past_state ? load_as_float(p.past_state, p.state_type, head * size + i) : 0.f;
  for (int first = 0; first < sums; first += kAhead) {
    float added[kAhead], factor[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const bool valid = first + j < sums;
      added[j] = valid ? states[static_cast<int64_t>(first + j) * size] : 0.f;
      factor[j] = valid ? fast_exp2(decays[(first + j) * stride]) : 1.f;
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (p.causal && first + j < sums) states[static_cast<int64_t>(first + j) * size] = x;
      x = factor[j] * x + added[j];
    }
  }
  states[static_cast<int64_t>(p.causal ? sums : 0) * size] = x;
}

}  // namespace

DeviceLimits device_limits() {
  DeviceLimits limits;
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  limits.dependent_launch = major >= 9;
  return limits;
}

cudaError_t launch_gated_scan(const GatedArgs& args, int B, cudaStream_t stream, bool dependent) {
  const dim3 grid(static_cast<unsigned>(B) * args.HV, (args.K * args.W + 127) / 128);
  const auto kernel = args.segments > 8 ? gated_scan_kernel<32> : gated_scan_kernel<4>;
  if (dependent) return launch_dependent(kernel, grid, dim3(128), 0, stream, args);
  kernel<<<grid, 128, 0, stream>>>(args);
  return cudaGetLastError();
}

size_t linear_attention_gated_workspace(const LinearAttentionParams& p) {
  const Plan plan = plan_of(p, linear_attention_cluster_takes(p));
  return plan.state_bytes + plan.decay_bytes;
}

cudaError_t launch_linear_attention_gated(const LinearAttentionParams& p, void* workspace,
                                          cudaStream_t stream) {
  const bool cluster = linear_attention_cluster_takes(p);
  if (cluster) {
    const cudaError_t error = launch_linear_attention_cluster(p, stream);
    if (error != cudaErrorNotSupported) return error;
  }
  const GatedArgs args = args_of(p, plan_of(p, cluster), workspace);
  const int B = static_cast<int>(p.B);
  switch (p.io) {
    case DType::kBFloat16:
      return launch_gated_bf16(args, B, is_general(p), stream);
    case DType::kFloat16:
      return launch_gated_f16(args, B, is_general(p), stream);
    default:
      return launch_gated_f32(args, B, stream);
  }
}

}  // namespace fla::cuda
