#include "ops/gen/causal_conv_with_state.h"

#include "ops/causal_conv_with_state/cpu.h"
#include "ops/register/ort_op.h"
#ifdef FLA_BUILD_CUDA
#include "cuda/causal_conv_with_state.h"
#include "ops/register/cuda.h"
#endif

namespace fla {
namespace {

namespace op = gen::causal_conv_with_state;

CausalConvWithStateParams params_of(const Call& call) {
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
  return params;
}

std::string run_cpu(const Call& call) {
  return causal_conv_with_state_cpu(params_of(call), call.parallel) ? "" : kOutOfMemory;
}

#ifdef FLA_BUILD_CUDA
std::string run_cuda(const Call& call) {
  return cuda_problem(
      causal_conv_with_state_cuda(params_of(call), static_cast<cudaStream_t>(call.gpu.stream)));
}
#endif

}  // namespace

void add_causal_conv_with_state(OpList* ops, const Runtime& runtime) {
  add_op<op::kTable>(ops, runtime, {nullptr, run_cpu});
#ifdef FLA_BUILD_CUDA
  add_op<op::kTable>(ops, runtime, {kCudaProvider, run_cuda});
#endif
}

}  // namespace fla
