#include "ops/register/shape_inference.h"

#include <string>
#include <vector>

#include "ops/register/ort_util.h"

namespace fla {
namespace {

// A model's names for dimensions ("batch", "sequence"), by dimension symbol; "" where there is
// none.
using DimNames = std::vector<std::string>;

// The element type of each type variable, UNDEFINED where no input tells.
using Types = std::vector<ONNXTensorElementDataType>;

// A variable that no input binds takes its first choice.
ONNXTensorElementDataType type_of(const OpTable& table, int variable, const Types& types) {
  if (types[variable] != ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED) return types[variable];
  const TypeChoice& choice = table.types[variable].choices[0];
  return choice.variable < 0 ? element_type(choice.dtype) : types[choice.variable];
}

// The value of an int attribute, its default, or kUnknown when it has neither.
int64_t int_attribute(const OrtApi* api, const OrtShapeInferContext* context,
                      const AttributeTable& attribute) {
  const OrtOpAttr* on_node = nullptr;
  int64_t value = 0;
  size_t size = 0;
  if (succeeded(api, api->ShapeInferContext_GetAttribute(context, attribute.name, &on_node)) &&
      succeeded(api, api->ReadOpAttr(on_node, ORT_OP_ATTR_INT, &value, sizeof value, &size))) {
    return value;
  }
  return attribute.required ? kUnknown : static_cast<int64_t>(attribute.default_number);
}

// The symbol of a dimension that is just one, such as `T`; -1 for `HQ*K` or `1`.
int bare_symbol(const OpTable& table, const DimTable& dim) {
  const int symbol = dim.factors[0].symbol;
  return symbol >= 0 && std::string(dim.text) == table.dims[symbol] ? symbol : -1;
}

OrtStatus* read_names(const OpTable& table, const ShapeTable& shape, const OrtApi* api,
                      const OrtTensorTypeAndShapeInfo* info, DimNames* names) {
  std::vector<const char*> symbols(shape.rank);
  FLA_RETURN_IF_ERROR(api->GetSymbolicDimensions(info, symbols.data(), symbols.size()));
  for (int axis = 0; axis < shape.rank; ++axis) {
    const int symbol = bare_symbol(table, shape.dims[axis]);
    if (symbol >= 0 && symbols[axis]) (*names)[symbol] = symbols[axis];
  }
  return nullptr;
}

OrtStatus* read_inputs(const OpTable& table, const OrtApi* api, const OrtShapeInferContext* context,
                       std::vector<TensorSpec>* specs, DimNames* names, Types* types) {
  size_t count = 0;
  FLA_RETURN_IF_ERROR(api->ShapeInferContext_GetInputCount(context, &count));
  for (size_t i = 0; i < count && i < specs->size(); ++i) {
    OrtTensorTypeAndShapeInfo* info = nullptr;  // the context keeps it
    FLA_RETURN_IF_ERROR(api->ShapeInferContext_GetInputTypeShape(context, i, &info));
    TensorSpec& spec = (*specs)[i];
    const ShapeTable& shape = table.inputs[static_cast<int>(i)].shapes[0];
    if (!succeeded(api, read_type_and_shape(api, info, &spec)))
      continue;  // absent inputs have no type
    (*types)[table.inputs[static_cast<int>(i)].type] = element_type(spec.dtype);
    if (spec.shape.size() == static_cast<size_t>(shape.rank)) {
      FLA_RETURN_IF_ERROR(read_names(table, shape, api, info, names));
    } else {
      spec.shape.assign(shape.rank, kUnknown);  // rank 0: not known
    }
  }
  return nullptr;
}

OrtStatus* set_output(const OpTable& table, int output, const Dims& dims, const DimNames& names,
                      const OrtApi* api, OrtShapeInferContext* context,
                      ONNXTensorElementDataType type) {
  const std::vector<int64_t> sizes = output_shape(table, output, dims);
  std::vector<const char*> symbols(sizes.size(), "");
  for (size_t axis = 0; axis < sizes.size(); ++axis) {
    if (sizes[axis] != kUnknown) continue;
    const int symbol = bare_symbol(table, table.outputs[output].shape.dims[axis]);
    if (symbol < 0 || names[symbol].empty()) return nullptr;
    symbols[axis] = names[symbol].c_str();
  }
  OrtTensorTypeAndShapeInfo* info = nullptr;
  FLA_RETURN_IF_ERROR(api->CreateTensorTypeAndShapeInfo(&info));
  OrtStatus* status = api->SetTensorElementType(info, type);
  if (!status) status = api->SetDimensions(info, sizes.data(), sizes.size());
  if (!status) status = api->SetSymbolicDimensions(info, symbols.data(), symbols.size());
  if (!status) status = api->ShapeInferContext_SetOutputTypeShape(context, output, info);
  api->ReleaseTensorTypeAndShapeInfo(info);
  return status;
}

}  // namespace

OrtStatus* infer_output_shapes(const OpTable& table, const OrtApi* api,
                               OrtShapeInferContext* context) {
  Attributes attributes;
  for (int i = 0; i < table.attributes.size; ++i) {
    if (table.attributes[i].type != AttributeType::kInt) continue;
    attributes.values[i].i = int_attribute(api, context, table.attributes[i]);
  }
  std::vector<TensorSpec> specs(table.inputs.size);
  DimNames names(table.dims.size);
  Types types(table.types.size, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED);
  FLA_RETURN_IF_ERROR(read_inputs(table, api, context, &specs, &names, &types));
  Dims dims;
  if (!solve_dims(table, attributes, specs, &dims).empty()) return nullptr;
  for (int i = 0; i < table.outputs.size; ++i) {
    OrtStatus* status = set_output(table, i, dims, names, api, context,
                                   type_of(table, table.outputs[i].type, types));
    if (status && table.outputs[i].optional) {
      api->ReleaseStatus(status);  // the node has fewer outputs
      continue;
    }
    if (status) return status;
  }
  return nullptr;
}

}  // namespace fla
