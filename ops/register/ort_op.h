// One operator as ONNX Runtime sees it: the OrtCustomOp callbacks, driven by an OpTable. C API
// only.
#ifndef FLA_OPS_REGISTER_ORT_OP_H_
#define FLA_OPS_REGISTER_ORT_OP_H_

#include <onnxruntime_c_api.h>

#include <memory>
#include <vector>

#include "ops/register/kernel.h"

namespace fla {

// What the running ONNX Runtime offers.
struct Runtime {
  const OrtApi* api;
  uint32_t api_version;
  int minor_version;  // of 1.x
};

// An OrtCustomOp for one combination of types on one execution provider. ORT merges those of one
// name into one schema.
struct RegisteredOp : OrtCustomOp {
  RegisteredOp(const Runtime& runtime, const OpTable& table, const TypeCombination& types,
               const Backend& backend);

  ONNXTensorElementDataType input_type(size_t index) const;
  ONNXTensorElementDataType output_type(size_t index) const;

  const OrtApi* api;
  const OpTable& table;
  const TypeCombination& types;
  Backend backend;
};

// Outputs that may reuse an input's memory; ORT passes no OrtCustomOp here, hence one function per
// table.
template <const OpTable& table>
size_t ORT_API_CALL may_inplace(int** inputs, int** outputs) {
  size_t count = 0;
  *inputs = new int[kMaxOutputs];
  *outputs = new int[kMaxOutputs];
  for (int i = 0; i < table.outputs.size; ++i) {
    if (table.outputs[i].in_place_of < 0) continue;
    (*inputs)[count] = table.outputs[i].in_place_of;
    (*outputs)[count++] = i;
  }
  return count;
}

inline void ORT_API_CALL release_may_inplace(int* inputs, int* outputs) {
  delete[] inputs;
  delete[] outputs;
}

using OpList = std::vector<std::unique_ptr<RegisteredOp>>;

// Adds one RegisteredOp per type combination of `table`.
template <const OpTable& table>
void add_op(OpList* ops, const Runtime& runtime, const Backend& backend) {
  for (const TypeCombination& types : table.combinations) {
    auto op = std::make_unique<RegisteredOp>(runtime, table, types, backend);
    op->GetMayInplace = may_inplace<table>;
    op->ReleaseMayInplace = release_may_inplace;
    ops->push_back(std::move(op));
  }
}

// One per operator, each in <op>.cc.
void add_linear_attention(OpList* ops, const Runtime& runtime);
void add_causal_conv_with_state(OpList* ops, const Runtime& runtime);
void add_window_attention(OpList* ops, const Runtime& runtime);
void add_hybrid_attention(OpList* ops, const Runtime& runtime);

}  // namespace fla

#endif  // FLA_OPS_REGISTER_ORT_OP_H_
