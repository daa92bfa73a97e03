#include "ops/gen/hybrid_attention.h"

#include "ops/hybrid_attention/cpu.h"
#include "ops/register/ort_op.h"

namespace fla {
namespace {

namespace op = gen::hybrid_attention;

// The kernel's enum counts in the order of the schema's allowed values.
static_assert(static_cast<int>(HybridMap::kSoftmax) == op::kFeatureMapSoftmax);

// The inputs that share type variable W.
constexpr int kParameters[] = {op::kQueryWeight, op::kKeyWeight,    op::kQueryBias,
                               op::kKeyBias,     op::kAlpha,        op::kKeyMean,
                               op::kAlibiSlopes, op::kDistanceBias, op::kDecay};

DType parameter_dtype(const Call& call) {
  for (int input : kParameters) {
    if (call.inputs[input].present) return call.inputs[input].dtype;
  }
  return DType::kFloat32;
}

HybridAttentionParams params_of(const Call& call) {
  HybridAttentionParams params;
  params.B = call.dims[op::kDimB];
  params.T = call.dims[op::kDimT];
  params.HQ = call.dims[op::kDimHQ];
  params.HV = call.dims[op::kDimHV];
  params.K = call.dims[op::kDimK];
  params.V = call.dims[op::kDimV];
  params.D = call.dims[op::kDimD];
  params.E = call.dims[op::kDimE];
  params.M = call.dims[op::kDimM];

  const Attributes& attributes = call.attributes;
  params.window = attributes[op::kAttributeWindow].i;
  params.sinks = attributes[op::kAttributeSinks].i;
  params.cache = attributes[op::kAttributeCache].i;
  params.scale = attributes[op::kAttributeScale].f;
  params.softcap = attributes[op::kAttributeSoftcap].f;
  params.map = static_cast<HybridMap>(attributes[op::kAttributeFeatureMap].index);
  params.signs = attributes[op::kAttributeSigns].i;

  params.io = call.inputs[op::kQuery].dtype;
  params.ring =
      call.inputs[op::kPastWindow].present ? call.inputs[op::kPastWindow].dtype : params.io;
  params.mask_dtype = call.inputs[op::kMask].dtype;
  params.parameter = parameter_dtype(call);

  params.query = call.input_data[op::kQuery];
  params.key = call.input_data[op::kKey];
  params.value = call.input_data[op::kValue];
  params.query_features = call.input_data[op::kQueryFeatures];
  params.key_features = call.input_data[op::kKeyFeatures];
  params.mask = call.input_data[op::kMask];
  params.query_weight = call.input_data[op::kQueryWeight];
  params.key_weight = call.input_data[op::kKeyWeight];
  params.query_bias = call.input_data[op::kQueryBias];
  params.key_bias = call.input_data[op::kKeyBias];
  params.alpha = call.input_data[op::kAlpha];
  params.key_mean = call.input_data[op::kKeyMean];
  params.alibi_slopes = call.input_data[op::kAlibiSlopes];
  params.distance_bias = call.input_data[op::kDistanceBias];
  params.decay = call.input_data[op::kDecay];
  params.past_window = call.input_data[op::kPastWindow];
  params.past_state = static_cast<const float*>(call.input_data[op::kPastState]);
  params.output = call.output_data[op::kOutput];
  params.present_window = call.output_data[op::kPresentWindow];
  params.present_state = static_cast<float*>(call.output_data[op::kPresentState]);
  return params;
}

std::string run_cpu(const Call& call) {
  return hybrid_attention_cpu(params_of(call), call.parallel) ? "" : kOutOfMemory;
}

}  // namespace

void add_hybrid_attention(OpList* ops, const Runtime& runtime) {
  add_op<op::kTable>(ops, runtime, {nullptr, run_cpu});
}

}  // namespace fla
