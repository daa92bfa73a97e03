#include "ops/register/ort_op.h"

#include <exception>

#include "ops/register/ort_util.h"
#include "ops/register/shape_inference.h"

namespace fla {
namespace {

// Older releases can crash while they prepare the shape inference of a node that lacks an optional
// input (microsoft/onnxruntime#26199) or output. There, only types are inferred; ORT does that
// itself.
constexpr int kShapeInferenceMinor = 30;

const RegisteredOp& self(const OrtCustomOp* op) { return *static_cast<const RegisteredOp*>(op); }

// Nothing may be thrown through ORT's C frames.
template <typename Body>
OrtStatus* guarded(const OrtApi* api, Body body) {
  try {
    return body();
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}

// What ORT keeps per node.
struct Instance {
  Instance(const OrtApi* api, const RegisteredOp& op)
      : api(api), kernel(op.table, op.backend, api) {}
  const OrtApi* api;
  Kernel kernel;
};

OrtStatus* ORT_API_CALL create_kernel(const OrtCustomOp* op, const OrtApi* api,
                                      const OrtKernelInfo* info, void** kernel) {
  return guarded(api, [&]() -> OrtStatus* {
    auto instance = std::make_unique<Instance>(api, self(op));
    FLA_RETURN_IF_ERROR(instance->kernel.init(info, op->version));
    *kernel = instance.release();
    return nullptr;
  });
}

OrtStatus* ORT_API_CALL compute_kernel(void* kernel, OrtKernelContext* context) {
  const Instance& instance = *static_cast<const Instance*>(kernel);
  return guarded(instance.api, [&] { return instance.kernel.compute(context); });
}

void ORT_API_CALL destroy_kernel(void* kernel) { delete static_cast<Instance*>(kernel); }

OrtStatus* ORT_API_CALL infer_shapes(const OrtCustomOp* op, OrtShapeInferContext* context) {
  const RegisteredOp& registered = self(op);
  return guarded(registered.api,
                 [&] { return infer_output_shapes(registered.table, registered.api, context); });
}

OrtCustomOpInputOutputCharacteristic characteristic(bool optional) {
  return optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
}

}  // namespace

RegisteredOp::RegisteredOp(const Runtime& runtime, const OpTable& op_table,
                           const TypeCombination& op_types, const Backend& op_backend)
    : OrtCustomOp{}, api(runtime.api), table(op_table), types(op_types), backend(op_backend) {
  version = runtime.api_version;
  GetName = [](const OrtCustomOp* op) { return self(op).table.name; };
  GetExecutionProviderType = [](const OrtCustomOp* op) { return self(op).backend.provider; };
  GetStartVersion = [](const OrtCustomOp* op) { return self(op).table.version; };
  GetEndVersion = [](const OrtCustomOp*) { return INT32_MAX; };
  GetInputTypeCount = [](const OrtCustomOp* op) {
    return static_cast<size_t>(self(op).table.inputs.size);
  };
  GetInputType = [](const OrtCustomOp* op, size_t i) { return self(op).input_type(i); };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  GetInputCharacteristic = [](const OrtCustomOp* op, size_t i) {
    return characteristic(self(op).table.inputs[static_cast<int>(i)].optional);
  };
  GetOutputTypeCount = [](const OrtCustomOp* op) {
    return static_cast<size_t>(self(op).table.outputs.size);
  };
  GetOutputType = [](const OrtCustomOp* op, size_t i) { return self(op).output_type(i); };
  GetOutputCharacteristic = [](const OrtCustomOp* op, size_t i) {
    return characteristic(self(op).table.outputs[static_cast<int>(i)].optional);
  };
  // Asked for even where nothing is variadic.
  GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
  GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
  GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
  CreateKernelV2 = create_kernel;
  KernelComputeV2 = compute_kernel;
  KernelDestroy = destroy_kernel;
  if (runtime.minor_version >= kShapeInferenceMinor) InferOutputShapeFn = infer_shapes;
}

ONNXTensorElementDataType RegisteredOp::input_type(size_t index) const {
  return element_type(types.types[table.inputs[static_cast<int>(index)].type]);
}

ONNXTensorElementDataType RegisteredOp::output_type(size_t index) const {
  return element_type(types.types[table.outputs[static_cast<int>(index)].type]);
}

}  // namespace fla
