#include "ops/gen/window_attention.h"

#include "ops/register/ort_op.h"
#include "ops/window_attention/cpu.h"

namespace fla {
namespace {

namespace op = gen::window_attention;

WindowAttentionParams params_of(const Call& call) {
  WindowAttentionParams params;
  params.B = call.dims[op::kDimB];
  params.T = call.dims[op::kDimT];
  params.HQ = call.dims[op::kDimHQ];
  params.HV = call.dims[op::kDimHV];
  params.K = call.dims[op::kDimK];
  params.V = call.dims[op::kDimV];

  const Attributes& attributes = call.attributes;
  params.window = attributes[op::kAttributeWindow].i;
  params.sinks = attributes[op::kAttributeSinks].i;
  params.scale = attributes[op::kAttributeScale].f;
  params.softcap = attributes[op::kAttributeSoftcap].f;

  params.io = call.inputs[op::kQuery].dtype;
  params.ring =
      call.inputs[op::kPastWindow].present ? call.inputs[op::kPastWindow].dtype : params.io;
  params.mask_dtype = call.inputs[op::kMask].dtype;
  params.parameter = call.inputs[op::kAlibiSlopes].present ? call.inputs[op::kAlibiSlopes].dtype
                                                           : call.inputs[op::kDistanceBias].dtype;

  params.query = call.input_data[op::kQuery];
  params.key = call.input_data[op::kKey];
  params.value = call.input_data[op::kValue];
  params.mask = call.input_data[op::kMask];
  params.alibi_slopes = call.input_data[op::kAlibiSlopes];
  params.distance_bias = call.input_data[op::kDistanceBias];
  params.past_window = call.input_data[op::kPastWindow];
  params.output = call.output_data[op::kOutput];
  params.lse = static_cast<float*>(call.output_data[op::kLse]);
  params.present_window = call.output_data[op::kPresentWindow];
  return params;
}

std::string run_cpu(const Call& call) {
  return window_attention_cpu(params_of(call), call.parallel) ? "" : kOutOfMemory;
}

}  // namespace

void add_window_attention(OpList* ops, const Runtime& runtime) {
  add_op<op::kTable>(ops, runtime, {nullptr, run_cpu});
}

}  // namespace fla
