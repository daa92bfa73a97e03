// Checks of one call against an OpTable, with the messages of checkCall in ops/define.ts. No ONNX
// Runtime here.
#ifndef FLA_OPS_REGISTER_CHECK_H_
#define FLA_OPS_REGISTER_CHECK_H_

#include <cstdint>
#include <string>
#include <vector>

#include "ops/register/op_table.h"

namespace fla {

constexpr int64_t kUnknown = -1;

struct AttributeValue {
  int64_t i = 0;   // int: the value; attributes with an allowed list: see `index`
  float f = 0;     // float: the value
  std::string s;   // string: the value
  int index = -1;  // position in the allowed list, when there is one
};

struct Attributes {
  AttributeValue values[kMaxAttributes];
  const AttributeValue& operator[](int attribute) const { return values[attribute]; }
};

struct TensorSpec {
  bool present = false;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;  // kUnknown where a size is not known yet (shape inference)
};

struct Dims {
  int64_t values[kMaxDims];
  int64_t operator[](int dim) const { return values[dim]; }
};

// Each function returns "" or the message of the first violation.

// `value` is what the node says, or the default. Sets value.index.
std::string check_attribute(const OpTable& op, int attribute, AttributeValue* value);
std::string check_attribute_rules(const OpTable& op, const Attributes& attributes);
std::string check_presence(const OpTable& op, const Attributes& attributes,
                           const std::vector<TensorSpec>& inputs);
std::string check_types(const OpTable& op, const std::vector<TensorSpec>& inputs);
// Solves every dimension; unknown input sizes leave dimensions at kUnknown.
std::string solve_dims(const OpTable& op, const Attributes& attributes,
                       const std::vector<TensorSpec>& inputs, Dims* dims);

// Sizes of an output; kUnknown where a dimension is.
std::vector<int64_t> output_shape(const OpTable& op, int output, const Dims& dims);

std::string check_message(const OpTable& op, const std::string& argument,
                          const std::string& expected, const std::string& received);

}  // namespace fla

#endif  // FLA_OPS_REGISTER_CHECK_H_
