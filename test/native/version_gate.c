// An operator library with one operator, com.fla.Probe, whose kernel answers 42 and exists from
// version START_VERSION of the domain on. Used to show which of kernel and function body runs.
#include <stddef.h>

#include "onnxruntime_c_api.h"

#ifndef START_VERSION
#define START_VERSION 1
#endif

static const OrtApi* ort;

static OrtStatus* create_kernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info,
                                void** kernel) {
  (void)api;
  (void)info;
  *kernel = (void*)op;
  return NULL;
}
static OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  (void)kernel;
  const int64_t dims[1] = {1};
  OrtValue* out;
  float* y;
  OrtStatus* status = ort->KernelContext_GetOutput(context, 0, dims, 1, &out);
  if (status == NULL) status = ort->GetTensorMutableData(out, (void**)&y);
  if (status == NULL) *y = 42;
  return status;
}
static void destroy_kernel(void* kernel) { (void)kernel; }
static const char* name(const OrtCustomOp* op) {
  (void)op;
  return "Probe";
}
static const char* provider(const OrtCustomOp* op) {
  (void)op;
  return NULL;
}
static ONNXTensorElementDataType type(const OrtCustomOp* op, size_t index) {
  (void)op;
  (void)index;
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}
static size_t one(const OrtCustomOp* op) {
  (void)op;
  return 1;
}
static OrtCustomOpInputOutputCharacteristic required(const OrtCustomOp* op, size_t index) {
  (void)op;
  (void)index;
  return INPUT_OUTPUT_REQUIRED;
}
static OrtMemType memory(const OrtCustomOp* op, size_t index) {
  (void)op;
  (void)index;
  return OrtMemTypeDefault;
}
static int start_version(const OrtCustomOp* op) {
  (void)op;
  return START_VERSION;
}
static int end_version(const OrtCustomOp* op) {
  (void)op;
  return 1000;
}

static const OrtCustomOp probe = {
    .version = 18,
    .CreateKernelV2 = create_kernel,
    .KernelComputeV2 = compute,
    .KernelDestroy = destroy_kernel,
    .GetName = name,
    .GetExecutionProviderType = provider,
    .GetInputType = type,
    .GetInputTypeCount = one,
    .GetOutputType = type,
    .GetOutputTypeCount = one,
    .GetInputCharacteristic = required,
    .GetOutputCharacteristic = required,
    .GetInputMemoryType = memory,
    .GetStartVersion = start_version,
    .GetEndVersion = end_version,
};

__attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                    const OrtApiBase* base) {
  static OrtCustomOpDomain* domain;
  ort = base->GetApi(18);
  OrtStatus* status = domain ? NULL : ort->CreateCustomOpDomain("com.fla", &domain);
  if (status == NULL) status = ort->CustomOpDomain_Add(domain, &probe);
  if (status == NULL) status = ort->AddCustomOpDomain(options, domain);
  return status;
}
