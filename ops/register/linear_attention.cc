#include "ops/gen/linear_attention.h"

#include "ops/linear_attention/cpu.h"
#include "ops/register/ort_op.h"
#ifdef FLA_BUILD_CUDA
#include "cuda/linear_attention.h"
#include "ops/register/cuda.h"
#endif

namespace fla {
namespace {

namespace op = gen::linear_attention;

// The kernel's enums count in the order of the schema's allowed values.
static_assert(static_cast<int>(UpdateRule::kGatedDelta) == op::kUpdateRuleGatedDelta &&
              static_cast<int>(FeatureMap::kSoftmax) == op::kFeatureMapSoftmax &&
              static_cast<int>(ReadMode::kBonus) == op::kReadBonus);

DecayKind decay_kind(const Call& call) {
  const TensorSpec& decay = call.inputs[op::kDecay];
  if (!decay.present) return DecayKind::kNone;
  return decay.shape[2] == call.dims[op::kDimHV] ? DecayKind::kPerHead : DecayKind::kPerKey;
}

BetaKind beta_kind(const Call& call) {
  const TensorSpec& beta = call.inputs[op::kBeta];
  if (!beta.present) return BetaKind::kNone;
  return beta.shape[2] == call.dims[op::kDimHV] ? BetaKind::kPerHead : BetaKind::kShared;
}

LinearAttentionParams params_of(const Call& call) {
  LinearAttentionParams params;
  params.B = call.dims[op::kDimB];
  params.T = call.dims[op::kDimT];
  params.Hq = call.dims[op::kDimHQ];
  params.Hk = call.dims[op::kDimHK];
  params.HV = call.dims[op::kDimHV];
  params.K = call.dims[op::kDimK];
  params.V = call.dims[op::kDimV];

  const Attributes& attributes = call.attributes;
  params.rule = static_cast<UpdateRule>(attributes[op::kAttributeUpdateRule].index);
  params.feature_map = static_cast<FeatureMap>(attributes[op::kAttributeFeatureMap].index);
  params.read = static_cast<ReadMode>(attributes[op::kAttributeRead].index);
  params.causal = attributes[op::kAttributeCausal].i != 0;
  params.normalize = attributes[op::kAttributeNormalize].i != 0;
  params.qk_l2norm = attributes[op::kAttributeQkL2norm].i != 0;
  params.scale = attributes[op::kAttributeScale].f;
  params.chunk_size = attributes[op::kAttributeChunkSize].i;

  params.io = call.inputs[op::kQuery].dtype;
  params.state = call.inputs[op::kPastState].present ? call.inputs[op::kPastState].dtype
                                                     : call.output_dtypes[op::kPresentState];
  params.decay_kind = decay_kind(call);
  params.decay_dtype = call.inputs[op::kDecay].dtype;
  params.beta_kind = beta_kind(call);
  params.beta_dtype = call.inputs[op::kBeta].dtype;
  params.mask_dtype = call.inputs[op::kMask].dtype;
  params.bonus_dtype = call.inputs[op::kBonus].dtype;

  params.query = call.input_data[op::kQuery];
  params.key = call.input_data[op::kKey];
  params.value = call.input_data[op::kValue];
  params.past_state = call.input_data[op::kPastState];
  params.decay = call.input_data[op::kDecay];
  params.beta = call.input_data[op::kBeta];
  params.mask = call.input_data[op::kMask];
  params.bonus = call.input_data[op::kBonus];
  params.output = call.output_data[op::kOutput];
  params.present_state = call.output_data[op::kPresentState];
  return params;
}

std::string run_cpu(const Call& call) {
  return linear_attention_cpu(params_of(call), call.parallel) ? "" : kOutOfMemory;
}

#ifdef FLA_BUILD_CUDA
std::string run_cuda(const Call& call) {
  const LinearAttentionParams params = params_of(call);
  constexpr int64_t kMaxHeadSize = 256;
  if (params.K > kMaxHeadSize || params.V > kMaxHeadSize) {
    return "head sizes on a CUDA device must be at most 256, received K = " +
           std::to_string(params.K) + ", V = " + std::to_string(params.V);
  }
  const size_t bytes = linear_attention_cuda_workspace(params);
  void* workspace = bytes ? call.gpu.scratch(call.gpu.ctx, bytes) : nullptr;
  if (bytes && !workspace) return kOutOfMemory;
  return cuda_problem(
      linear_attention_cuda(params, workspace, static_cast<cudaStream_t>(call.gpu.stream)));
}
#endif

}  // namespace

void add_linear_attention(OpList* ops, const Runtime& runtime) {
  add_op<op::kTable>(ops, runtime, {nullptr, run_cpu});
#ifdef FLA_BUILD_CUDA
  add_op<op::kTable>(ops, runtime, {kCudaProvider, run_cuda});
#endif
}

}  // namespace fla
