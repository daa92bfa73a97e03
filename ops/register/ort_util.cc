#include "ops/register/ort_util.h"

#include <algorithm>

namespace fla {
namespace {

constexpr struct {
  DType dtype;
  ONNXTensorElementDataType element;
} kElementTypes[] = {
    {DType::kFloat32, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},
    {DType::kFloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16},
    {DType::kBFloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16},
    {DType::kBool, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL},
};

}  // namespace

ONNXTensorElementDataType element_type(DType dtype) {
  for (const auto& pair : kElementTypes) {
    if (pair.dtype == dtype) return pair.element;
  }
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

OrtStatus* read_dtype(const OrtApi* api, ONNXTensorElementDataType element, DType* dtype) {
  for (const auto& pair : kElementTypes) {
    if (pair.element != element) continue;
    *dtype = pair.dtype;
    return nullptr;
  }
  return api->CreateStatus(ORT_INVALID_ARGUMENT, "com.fla: unsupported tensor element type");
}

OrtStatus* read_type_and_shape(const OrtApi* api, const OrtTensorTypeAndShapeInfo* info,
                               TensorSpec* spec) {
  ONNXTensorElementDataType element;
  FLA_RETURN_IF_ERROR(api->GetTensorElementType(info, &element));
  FLA_RETURN_IF_ERROR(read_dtype(api, element, &spec->dtype));
  size_t rank = 0;
  FLA_RETURN_IF_ERROR(api->GetDimensionsCount(info, &rank));
  spec->present = true;
  spec->shape.resize(rank);
  FLA_RETURN_IF_ERROR(api->GetDimensions(info, spec->shape.data(), rank));
  for (int64_t& size : spec->shape) size = std::max(size, kUnknown);
  return nullptr;
}

}  // namespace fla
