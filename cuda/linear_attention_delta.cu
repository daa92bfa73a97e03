// LinearAttention on a CUDA device, rules delta and gated_delta, many tokens: plan, scan over the
// segments, launcher. The kernel that walks a segment, and the algebra: linear_attention_delta.cuh.
#include <algorithm>

#include "cuda/linear_attention_delta.cuh"
#include "cuda/linear_attention_kernels.h"

namespace fla::cuda {
namespace delta {
namespace {

constexpr int64_t kMostWorkspace = 60 << 20;
constexpr int kScanColumns = 8;  // per thread block
constexpr int kScanRows = 16;    // of a map, per copy
constexpr int kScanStages = 4;

int64_t divide_up(int64_t x, int64_t y) { return (x + y - 1) / y; }

bool whole_pieces(const void* pointer, int64_t size, DType type) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && size * size_of(type) % 16 == 0;
}

size_t workspace_bytes(const Plan& plan) {
  if (!plan.scan) return 0;
  const int64_t heads = plan.p.B * plan.p.HV;
  return heads * (plan.segments * plan.state_size() + (plan.segments - 1) * plan.map_size()) *
         sizeof(float);
}

// Estimated time of `blocks` thread blocks, in walks of one alone on its multiprocessor: `resident`
// at a time share one, and each then takes (1 + n) / 2 as long.
int64_t waves(int64_t blocks, int64_t resident) {
  const int64_t slots = kMultiprocessors * resident,
                rest = divide_up(blocks % slots, kMultiprocessors);
  return blocks / slots * (1 + resident) + (rest ? 1 + rest : 0);
}

// The number of segments with the least estimated time. More segments fill more of the device, but
// they cost a walk over all but the last segment and a step of the scan each.
void choose_segments(Plan& plan) {
  const LinearAttentionParams& p = plan.p;
  const int64_t heads = p.B * p.HV, tiles = plan.value_tiles;
  const int64_t resident = plan.panels == 1 && p.io != DType::kFloat32 ? 3 : 2;
  const int64_t map_blocks = plan.panels == 1 ? tiles : tiles + plan.panels;
  const int64_t scan_step = 16 * plan.panels * plan.panels;  // as tokens of a walk
  const int64_t segment_bytes = heads * (plan.state_size() + plan.map_size()) * sizeof(float);
  const int64_t most = std::min(
      {divide_up(p.T, 64), int64_t{128}, kMostWorkspace / std::max<int64_t>(segment_bytes, 1)});
  int64_t best = 0;
  for (int64_t segments = 1; segments == 1 || segments <= most; ++segments) {
    const int64_t tokens = std::max<int64_t>(divide_up(divide_up(p.T, segments), 64) * 64, 64);
    const int64_t count = std::max<int64_t>(divide_up(p.T, tokens), 1);
    if (count != segments) continue;
    int64_t cost = tokens * waves(p.B * plan.HO * tiles * count, resident);
    if (count > 1)
      cost += tokens * waves(heads * map_blocks * (count - 1), resident) + count * scan_step;
    if (segments > 1 && cost >= best) continue;
    best = cost;
    plan.segments = static_cast<int>(count);
    plan.segment_tokens = tokens;
  }
}

// Everything but the workspace's pointers; a function of shapes and options, and of pointers'
// alignment.
Plan make_plan(const LinearAttentionParams& p) {
  Plan plan;
  plan.p = p;
  if (p.rule == UpdateRule::kDelta) plan.p.decay_kind = DecayKind::kNone;
  plan.HO = std::max(p.Hq, p.HV);
  plan.panels = p.K <= 64 ? 1 : p.K <= 128 ? 2 : 4;
  plan.value_tiles = static_cast<int>(divide_up(p.V, p.normalize ? 60 : kColumns));
  plan.vectorised = !p.normalize && whole_pieces(p.query, p.K, p.io) &&
                    whole_pieces(p.key, p.K, p.io) && whole_pieces(p.value, p.V, p.io) &&
                    whole_pieces(p.output, p.V, p.io);
  plan.decay_pairs =
      p.K % 2 == 0 && reinterpret_cast<uintptr_t>(p.decay) % (2 * size_of(p.decay_dtype)) == 0;
  if (p.feature_map == FeatureMap::kL2Norm && !p.qk_l2norm) {
    plan.p.feature_map = FeatureMap::kIdentity;
    plan.p.qk_l2norm = true;
  }
  plan.fold_norm = plan.p.qk_l2norm && plan.p.feature_map == FeatureMap::kIdentity;
  choose_segments(plan);
  // Where several thread blocks read the same column of past_state, in place would be a race.
  plan.scan = plan.segments > 1 || plan.HO > p.HV || (p.normalize && plan.value_tiles > 1);
  return plan;
}

// S_{i+1} = Map_i S_i + N_i over the segments of one head, for kScanColumns columns, in float. S_0
// is past_state.
template <int Panels>
__global__ void __launch_bounds__(kThreads)
    linear_attention_delta_scan_kernel(const __grid_constant__ Plan plan) {
  constexpr int kK = 64 * Panels, kSlice = kScanRows * kK, kSlices = kK / kScanRows;
  extern __shared__ __align__(128) float scan_shared[];
  float* const slices = scan_shared;                         // [stage][input dim][output dim]
  float* const states = scan_shared + kScanStages * kSlice;  // [2][key dim][column]
  const LinearAttentionParams& p = plan.p;
  const int groups = kColumns * plan.value_tiles / kScanColumns;
  const int64_t head = blockIdx.x / groups;
  const int first = blockIdx.x % groups * kScanColumns;
  float* const out = plan.states + head * plan.segments * plan.state_size() + int64_t{first} * kK;
  const float* const maps = plan.maps + head * (plan.segments - 1) * plan.map_size();

  const int total = (plan.segments - 1) * kSlices;
  const auto copy = [&](int i) {
    if (i < total) {
      for (int at = threadIdx.x * 4; at < kSlice; at += kThreads * 4) {
        copy_async_16(slices + i % kScanStages * kSlice + at, maps + int64_t{i} * kSlice + at,
                      true);
      }
    }
    copy_async_commit();
  };
  for (int i = 0; i < kScanStages - 1; ++i) copy(i);

  for (int i = threadIdx.x; i < kK * kScanColumns; i += kThreads) {
    const int d = i % kK, j = i / kK;
    const int64_t column = plan.column(first + j), width = p.V + p.normalize;
    float x = 0.f;
    if (p.past_state && column >= 0 && d < p.K) {
      x = load_as_float(p.past_state, p.state, (head * p.K + d) * width + column);
    }
    states[d * kScanColumns + j] = x;
    out[j * kK + d] = x;
  }

  // A thread computes four columns of Panels key dims.
  const int half = threadIdx.x / 64 * 4;
  const int dim = threadIdx.x % 64;
  int slice = 0;
  for (int segment = 1; segment < plan.segments; ++segment) {
    float* const to = out + segment * plan.state_size();
    const float* const from = states + (segment - 1) % 2 * kK * kScanColumns;
    float* const next = states + segment % 2 * kK * kScanColumns;
    float sum[Panels][4];
#pragma unroll
    for (int i = 0; i < Panels; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[i][j] = to[(half + j) * kK + 64 * i + dim];
    }
    for (int first_row = 0; first_row < kK; first_row += kScanRows, ++slice) {
      copy_async_wait<kScanStages - 2>();
      __syncthreads();
      copy(slice + kScanStages - 1);
      const float* const map = slices + slice % kScanStages * kSlice;
#pragma unroll
      for (int r = 0; r < kScanRows; ++r) {
        const float4 s =
            *reinterpret_cast<const float4*>(from + (first_row + r) * kScanColumns + half);
#pragma unroll
        for (int i = 0; i < Panels; ++i) {
          const float m = map[r * kK + 64 * i + dim];
          sum[i][0] += m * s.x;
          sum[i][1] += m * s.y;
          sum[i][2] += m * s.z;
          sum[i][3] += m * s.w;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < Panels; ++i) {
      const int d = 64 * i + dim;
#pragma unroll
      for (int j = 0; j < 4; ++j) to[(half + j) * kK + d] = sum[i][j];
      *reinterpret_cast<float4*>(next + d * kScanColumns + half) =
          make_float4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
    }
  }
}

template <int Panels>
cudaError_t launch_scan(const Plan& plan, cudaStream_t stream) {
  constexpr int kK = 64 * Panels;
  constexpr int kBytes = (kScanStages * kScanRows + 2 * kScanColumns) * kK * sizeof(float);
  const auto kernel = linear_attention_delta_scan_kernel<Panels>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const int64_t blocks = plan.p.B * plan.p.HV * plan.value_tiles * (kColumns / kScanColumns);
  kernel<<<static_cast<unsigned>(blocks), kThreads, kBytes, stream>>>(plan);
  return cudaGetLastError();
}

// Mapped keys and queries of 16 bits are kept in tf32: rounding mapped keys to bf16 would add an
// error of its own, which the rule amplifies where keys are much alike; large features leave f16's
// range. So do the factors of decay per key.
cudaError_t launch_walk(const Plan& plan, bool output, cudaStream_t stream) {
  const bool per_key = plan.p.decay_kind == DecayKind::kPerKey;
  switch (plan.p.io) {
    case DType::kFloat32:
      return launch_walk_f32(plan, output, stream);
    case DType::kFloat16:
      return plan.mapped() || per_key ? launch_walk_tf32(plan, output, stream)
                                      : launch_walk_f16(plan, output, stream);
    case DType::kBFloat16:
      return plan.mapped() ? launch_walk_tf32(plan, output, stream)
                           : launch_walk_bf16(plan, output, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t launch_all(const Plan& plan, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  if (plan.segments > 1) error = launch_walk(plan, false, stream);
  if (error == cudaSuccess && plan.scan) {
    error = plan.panels == 1   ? launch_scan<1>(plan, stream)
            : plan.panels == 2 ? launch_scan<2>(plan, stream)
                               : launch_scan<4>(plan, stream);
  }
  if (error == cudaSuccess) error = launch_walk(plan, true, stream);
  return error;
}

}  // namespace
}  // namespace delta

size_t linear_attention_delta_workspace(const LinearAttentionParams& p) {
  return delta::workspace_bytes(delta::make_plan(p));
}

cudaError_t launch_linear_attention_delta(const LinearAttentionParams& p, void* workspace,
                                          cudaStream_t stream) {
  if (p.K < 1 || p.K > 256 || p.V < 1 || p.V > 256 || p.read == ReadMode::kBonus || !p.causal) {
    return cudaErrorInvalidValue;
  }
  if (p.B == 0 || p.HV == 0) return cudaSuccess;
  delta::Plan plan = delta::make_plan(p);
  plan.states = static_cast<float*>(workspace);
  plan.maps = plan.states + p.B * p.HV * plan.segments * plan.state_size();
  return delta::launch_all(plan, stream);
}

}  // namespace fla::cuda
