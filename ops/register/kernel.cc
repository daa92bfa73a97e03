#include "ops/register/kernel.h"

#include <cstdlib>
#include <string>
#include <thread>

#include "ops/register/ort_util.h"

namespace fla {
namespace {

// KernelInfo_GetConfigEntries came with API 24.
constexpr uint32_t kConfigEntriesVersion = 24;
constexpr const char* kThreadsConfigKey = "fla.intra_op_num_threads";

OrtStatus* get_string(const OrtApi* api, const OrtKernelInfo* info, const char* name,
                      std::string* out) {
  size_t size = 0;
  FLA_RETURN_IF_ERROR(api->KernelInfoGetAttribute_string(info, name, nullptr, &size));
  std::vector<char> text(size + 1);
  FLA_RETURN_IF_ERROR(api->KernelInfoGetAttribute_string(info, name, text.data(), &size));
  *out = text.data();
  return nullptr;
}

OrtStatus* get_value(const OrtApi* api, const OrtKernelInfo* info, const char* name,
                     AttributeType type, AttributeValue* value) {
  switch (type) {
    case AttributeType::kInt:
      return api->KernelInfoGetAttribute_int64(info, name, &value->i);
    case AttributeType::kFloat:
      return api->KernelInfoGetAttribute_float(info, name, &value->f);
    case AttributeType::kString:
      return get_string(api, info, name, &value->s);
  }
  return nullptr;
}

const char* type_name(AttributeType type) {
  return type == AttributeType::kInt ? "int" : type == AttributeType::kFloat ? "float" : "string";
}

// "none", or the type that the attribute has instead of the one asked for.
const char* actual_type(const OrtApi* api, const OrtKernelInfo* info, const char* name) {
  for (AttributeType type : {AttributeType::kInt, AttributeType::kFloat, AttributeType::kString}) {
    AttributeValue ignored;
    if (succeeded(api, get_value(api, info, name, type, &ignored))) return type_name(type);
  }
  return "none";
}

std::string read_attribute(const OpTable& op, int index, const OrtApi* api,
                           const OrtKernelInfo* info, AttributeValue* value) {
  const AttributeTable& attribute = op.attributes[index];
  if (!succeeded(api, get_value(api, info, attribute.name, attribute.type, value))) {
    const std::string actual = actual_type(api, info, attribute.name);
    if (attribute.required || actual != "none") {
      return check_message(op, attribute.name, std::string("of type ") + type_name(attribute.type),
                           actual);
    }
    value->i = static_cast<int64_t>(attribute.default_number);
    value->f = static_cast<float>(attribute.default_number);
    if (attribute.default_string) value->s = attribute.default_string;
  }
  return check_attribute(op, index, value);
}

std::string read_attributes(const OpTable& op, const OrtApi* api, const OrtKernelInfo* info,
                            Attributes* attributes) {
  for (int i = 0; i < op.attributes.size; ++i) {
    std::string message = read_attribute(op, i, api, info, &attributes->values[i]);
    if (!message.empty()) return message;
  }
  return check_attribute_rules(op, *attributes);
}

// How many threads to cut the work for: what the session config says, else every core this process
// may use. ONNX Runtime does not tell a custom op the size of its pool; a wrong guess costs speed,
// not correctness.
int thread_count(const OrtApi* api, const OrtKernelInfo* info, uint32_t api_version) {
  int threads = 0;
  OrtKeyValuePairs* entries = nullptr;
  if (api_version >= kConfigEntriesVersion &&
      succeeded(api, api->KernelInfo_GetConfigEntries(info, &entries))) {
    const char* text = api->GetKeyValue(entries, kThreadsConfigKey);
    threads = text ? std::atoi(text) : 0;
    api->ReleaseKeyValuePairs(entries);
  }
  if (threads <= 0) threads = static_cast<int>(std::thread::hardware_concurrency());
  return threads > 0 ? threads : 1;
}

struct Host {
  const OrtApi* api;
  const OrtKernelContext* context;
  OrtStatus* failure = nullptr;  // of the last run_on_host; owned by whoever returns it
};

struct Work {
  void (*fn)(void* arg, int64_t index);
  void* arg;
};

// Parallel::run on the session's own thread pool. One batch per item: with fewer, ONNX Runtime
// deals the items out beforehand, and uneven ones leave threads idle.
void run_on_host(void* host_ptr, int64_t total, void (*fn)(void* arg, int64_t index), void* arg) {
  Host& host = *static_cast<Host*>(host_ptr);
  Work work{fn, arg};
  auto step = [](void* work_ptr, size_t index) {
    const Work& item = *static_cast<const Work*>(work_ptr);
    item.fn(item.arg, static_cast<int64_t>(index));
  };
  if (host.failure || total == 0) return;
  const size_t items = static_cast<size_t>(total);
  host.failure = host.api->KernelContext_ParallelFor(host.context, step, items, items, &work);
}

// Gpu::scratch from the execution provider's own allocator. What is freed here is reused only by
// later work on the same stream, so the kernels that were enqueued may still be using it.
struct Scratch {
  const OrtApi* api;
  const OrtKernelContext* context;
  OrtAllocator* allocator;
  std::vector<void*> buffers;

  ~Scratch() {
    for (void* buffer : buffers) allocator->Free(allocator, buffer);
  }

  static void* take(void* self_ptr, size_t bytes) {
    Scratch& self = *static_cast<Scratch*>(self_ptr);
    void* buffer = nullptr;
    OrtStatus* status = self.api->KernelContext_GetScratchBuffer(
        self.context, self.allocator->Info(self.allocator), bytes, &buffer);
    if (!succeeded(self.api, status)) return nullptr;
    if (buffer) self.buffers.push_back(buffer);
    return buffer;
  }
};

}  // namespace

Kernel::~Kernel() {
  if (allocator_) api_->ReleaseAllocator(allocator_);
}

OrtStatus* Kernel::init(const OrtKernelInfo* info, uint32_t api_version) {
  threads_ = thread_count(api_, info, api_version);
  if (backend_.provider) {
    FLA_RETURN_IF_ERROR(api_->KernelInfoGetAllocator(info, OrtMemTypeDefault, &allocator_));
  }
  return invalid_argument(api_, read_attributes(table_, api_, info, &attributes_));
}

OrtStatus* Kernel::compute(OrtKernelContext* context) const {
  std::vector<TensorSpec> specs(table_.inputs.size);
  Dims dims;
  Host host{api_, context, nullptr};
  Scratch scratch{api_, context, allocator_, {}};
  Call call{attributes_, dims, specs, {}, {}, {}, {threads_, run_on_host, &host}, {}};
  FLA_RETURN_IF_ERROR(read_inputs(context, &specs, call.input_data));
  FLA_RETURN_IF_ERROR(invalid_argument(api_, check_presence(table_, attributes_, specs)));
  FLA_RETURN_IF_ERROR(invalid_argument(api_, check_types(table_, specs)));
  FLA_RETURN_IF_ERROR(invalid_argument(api_, solve_dims(table_, attributes_, specs, &dims)));
  FLA_RETURN_IF_ERROR(make_outputs(context, &call));
  if (backend_.provider) {
    call.gpu = {nullptr, Scratch::take, &scratch};
    FLA_RETURN_IF_ERROR(api_->KernelContext_GetGPUComputeStream(context, &call.gpu.stream));
  }
  const std::string problem = backend_.run(call);
  if (host.failure) return host.failure;
  if (problem.empty()) return nullptr;
  return api_->CreateStatus(ORT_FAIL, (std::string(table_.name) + ": " + problem).c_str());
}

OrtStatus* Kernel::read_inputs(const OrtKernelContext* context, std::vector<TensorSpec>* specs,
                               const void** data) const {
  size_t count = 0;
  FLA_RETURN_IF_ERROR(api_->KernelContext_GetInputCount(context, &count));
  for (size_t i = 0; i < count && i < specs->size(); ++i) {
    const OrtValue* value = nullptr;
    FLA_RETURN_IF_ERROR(api_->KernelContext_GetInput(context, i, &value));
    if (!value) continue;
    FLA_RETURN_IF_ERROR(read_spec(value, &(*specs)[i]));
    void* bytes = nullptr;
    FLA_RETURN_IF_ERROR(api_->GetTensorMutableData(const_cast<OrtValue*>(value), &bytes));
    data[i] = bytes;
  }
  return nullptr;
}

OrtStatus* Kernel::make_outputs(OrtKernelContext* context, Call* call) const {
  size_t count = 0;
  FLA_RETURN_IF_ERROR(api_->KernelContext_GetOutputCount(context, &count));
  for (int i = 0; i < table_.outputs.size && static_cast<size_t>(i) < count; ++i) {
    const std::vector<int64_t> shape = output_shape(table_, i, call->dims);
    OrtValue* value = nullptr;
    FLA_RETURN_IF_ERROR(
        api_->KernelContext_GetOutput(context, i, shape.data(), shape.size(), &value));
    if (!value) continue;
    TensorSpec spec;
    FLA_RETURN_IF_ERROR(read_spec(value, &spec));
    FLA_RETURN_IF_ERROR(api_->GetTensorMutableData(value, &call->output_data[i]));
    call->output_dtypes[i] = spec.dtype;
  }
  return nullptr;
}

OrtStatus* Kernel::read_spec(const OrtValue* value, TensorSpec* spec) const {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  FLA_RETURN_IF_ERROR(api_->GetTensorTypeAndShape(value, &info));
  OrtStatus* status = read_type_and_shape(api_, info, spec);
  api_->ReleaseTensorTypeAndShapeInfo(info);
  return status;
}

}  // namespace fla
