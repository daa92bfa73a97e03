// The part of a custom op that lives per node: attributes read once, then one checked call per run.
#ifndef FLA_OPS_REGISTER_KERNEL_H_
#define FLA_OPS_REGISTER_KERNEL_H_

#include <onnxruntime_c_api.h>

#include <vector>

#include "ops/register/check.h"

namespace fla {

// One checked call, ready to run. Absent inputs and outputs are null.
struct Call {
  const Attributes& attributes;
  const Dims& dims;
  const std::vector<TensorSpec>& inputs;
  const void* input_data[kMaxInputs];
  void* output_data[kMaxOutputs];
  DType output_dtypes[kMaxOutputs];
  Parallel parallel;
};

// Runs the op's kernel; false when memory ran out.
using RunFn = bool (*)(const Call& call);

class Kernel {
 public:
  Kernel(const OpTable& table, RunFn run, const OrtApi* api)
      : table_(table), run_(run), api_(api) {}

  // Reads and checks the node's attributes. `api_version` is what the running ONNX Runtime offers.
  OrtStatus* init(const OrtKernelInfo* info, uint32_t api_version);
  OrtStatus* compute(OrtKernelContext* context) const;

 private:
  OrtStatus* read_inputs(const OrtKernelContext* context, std::vector<TensorSpec>* specs,
                         const void** data) const;
  OrtStatus* make_outputs(OrtKernelContext* context, Call* call) const;
  OrtStatus* read_spec(const OrtValue* value, TensorSpec* spec) const;

  const OpTable& table_;
  const RunFn run_;
  const OrtApi* api_;
  Attributes attributes_;
  int threads_ = 1;
};

}  // namespace fla

#endif  // FLA_OPS_REGISTER_KERNEL_H_
