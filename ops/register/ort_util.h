// Small helpers over the ONNX Runtime C API.
#ifndef FLA_OPS_REGISTER_ORT_UTIL_H_
#define FLA_OPS_REGISTER_ORT_UTIL_H_

#include <onnxruntime_c_api.h>

#include <string>

#include "ops/register/check.h"

#define FLA_RETURN_IF_ERROR(expression)   \
  do {                                    \
    OrtStatus* fla_status = (expression); \
    if (fla_status) return fla_status;    \
  } while (false)

namespace fla {

// Null for an empty message.
inline OrtStatus* invalid_argument(const OrtApi* api, const std::string& message) {
  return message.empty() ? nullptr : api->CreateStatus(ORT_INVALID_ARGUMENT, message.c_str());
}

// True when the call succeeded; its status is released either way.
inline bool succeeded(const OrtApi* api, OrtStatus* status) {
  if (!status) return true;
  api->ReleaseStatus(status);
  return false;
}

ONNXTensorElementDataType element_type(DType dtype);
// Fails for element types that no op here takes.
OrtStatus* read_dtype(const OrtApi* api, ONNXTensorElementDataType element, DType* dtype);

// Fills in dtype and shape; unknown sizes become kUnknown. Fails as read_dtype does.
OrtStatus* read_type_and_shape(const OrtApi* api, const OrtTensorTypeAndShapeInfo* info,
                               TensorSpec* spec);

}  // namespace fla

#endif  // FLA_OPS_REGISTER_ORT_UTIL_H_
