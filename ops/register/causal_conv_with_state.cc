#include "ops/gen/causal_conv_with_state.h"

#include "ops/causal_conv_with_state/cpu.h"
#include "ops/register/ort_op.h"

namespace fla {
namespace {

namespace op = gen::causal_conv_with_state;

bool run(const Call& call) {
  CausalConvWithStateParams params;
  params.B = call.dims[op::kDimB];
  params.C = call.dims[op::kDimD];
  params.T = call.dims[op::kDimT];
  params.kernel = call.dims[op::kDimW];
  params.silu = call.attributes[op::kAttributeActivation].index != op::kActivationNone;
  params.io = call.inputs[op::kInput].dtype;
  params.input = call.input_data[op::kInput];
  params.weight = call.input_data[op::kWeight];
  params.bias = call.input_data[op::kBias];
  params.past_state = call.input_data[op::kPastState];
  params.output = call.output_data[op::kOutput];
  params.present_state = call.output_data[op::kPresentState];
  return causal_conv_with_state_cpu(params, call.parallel);
}

}  // namespace

void add_causal_conv_with_state(OpList* ops, const Runtime& runtime) {
  add_op<op::kTable>(ops, runtime, run);
}

}  // namespace fla
