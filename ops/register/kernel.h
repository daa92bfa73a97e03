// The part of a custom op that lives per node: attributes read once, then one checked call per run.
#ifndef FLA_OPS_REGISTER_KERNEL_H_
#define FLA_OPS_REGISTER_KERNEL_H_

#include <onnxruntime_c_api.h>

#include <memory>
#include <string>
#include <vector>

#include "ops/register/check.h"

namespace fla {

// What a kernel on a GPU is given.
struct Gpu {
  void* stream = nullptr;
  // Device memory of this call, aligned to 256 bytes; null when there is none left.
  void* (*scratch)(void* ctx, size_t bytes) = nullptr;
  void* ctx = nullptr;
};

// One checked call, ready to run. Absent inputs and outputs are null.
struct Call {
  const Attributes& attributes;
  const Dims& dims;
  const std::vector<TensorSpec>& inputs;
  const void* input_data[kMaxInputs];
  void* output_data[kMaxOutputs];
  DType output_dtypes[kMaxOutputs];
  Parallel parallel;  // CPU kernels
  Gpu gpu;            // GPU kernels
};

// Runs the op's kernel. Returns "" or what went wrong.
using RunFn = std::string (*)(const Call& call);
constexpr const char* kOutOfMemory = "out of memory";

// An implementation of an op for one execution provider.
struct Backend {
  const char* provider;  // of ONNX Runtime; null for the CPU's
  RunFn run;
};

// Element types and shapes of a call's inputs, as ONNX Runtime gives them.
struct Signature {
  struct Input {
    bool present = false;
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    size_t rank = 0;
    int64_t sizes[kMaxRank] = {};
  };
  Input inputs[kMaxInputs];
};

// A call that passed its checks. Most calls have the shapes of the call before.
struct Checked {
  Signature signature;
  std::vector<TensorSpec> inputs;
  Dims dims;
  std::vector<int64_t> output_shapes[kMaxOutputs];
};

class Kernel {
 public:
  Kernel(const OpTable& table, const Backend& backend, const OrtApi* api)
      : table_(table), backend_(backend), api_(api) {}
  ~Kernel();
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  // Reads and checks the node's attributes. `api_version` is what the running ONNX Runtime offers.
  OrtStatus* init(const OrtKernelInfo* info, uint32_t api_version);
  OrtStatus* compute(OrtKernelContext* context) const;

 private:
  // Fills in `checked` from the inputs, or takes what the call before left.
  OrtStatus* check(const OrtValue* const* inputs, std::shared_ptr<const Checked>* checked) const;
  // False where the runtime has no way to read a shape without allocating memory, or a shape is
  // longer than any that an op takes.
  bool read_signature(const OrtValue* const* inputs, Signature* signature) const;
  OrtStatus* make_outputs(OrtKernelContext* context, const Checked& checked, Call* call) const;
  OrtStatus* read_spec(const OrtValue* value, TensorSpec* spec) const;
  OrtStatus* read_dtype(const OrtValue* value, DType* dtype) const;

  const OpTable& table_;
  const Backend backend_;
  const OrtApi* api_;
  OrtAllocator* allocator_ = nullptr;  // of device memory; GPU kernels only
  Attributes attributes_;
  int threads_ = 1;
  uint32_t api_version_ = 0;
  mutable std::shared_ptr<const Checked> latest_;  // read and replaced atomically: runs may overlap
};

}  // namespace fla

#endif  // FLA_OPS_REGISTER_KERNEL_H_
