// Output shapes at model load, from what ONNX Runtime knows about the inputs then.
#ifndef FLA_OPS_REGISTER_SHAPE_INFERENCE_H_
#define FLA_OPS_REGISTER_SHAPE_INFERENCE_H_

#include <onnxruntime_c_api.h>

#include "ops/register/op_table.h"

namespace fla {

// Sets the shape of every output whose dimensions are all known, as sizes or as names that the
// model gives them. Violations are left to the kernel, which reports them with actual sizes.
OrtStatus* infer_output_shapes(const OpTable& table, const OrtApi* api,
                               OrtShapeInferContext* context);

}  // namespace fla

#endif  // FLA_OPS_REGISTER_SHAPE_INFERENCE_H_
