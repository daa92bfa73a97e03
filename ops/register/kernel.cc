#include "ops/register/kernel.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <thread>

#include "ops/register/ort_util.h"

namespace fla {
namespace {

// KernelInfo_GetConfigEntries came with API 24.
constexpr uint32_t kConfigEntriesVersion = 24;
// So did GetTensorElementTypeAndShapeDataReference.
constexpr uint32_t kShapeReferenceVersion = 24;
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

bool same(const Signature& x, const Signature& y) {
  return std::equal(std::begin(x.inputs), std::end(x.inputs), y.inputs, [](auto& a, auto& b) {
    return a.present == b.present && a.type == b.type && a.rank == b.rank &&
           std::equal(a.sizes, a.sizes + a.rank, b.sizes);
  });
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
  api_version_ = api_version;
  threads_ = thread_count(api_, info, api_version);
  if (backend_.provider) {
    FLA_RETURN_IF_ERROR(api_->KernelInfoGetAllocator(info, OrtMemTypeDefault, &allocator_));
  }
  return invalid_argument(api_, read_attributes(table_, api_, info, &attributes_));
}

OrtStatus* Kernel::compute(OrtKernelContext* context) const {
  const OrtValue* inputs[kMaxInputs] = {};
  size_t count = 0;
  FLA_RETURN_IF_ERROR(api_->KernelContext_GetInputCount(context, &count));
  for (size_t i = 0; i < count && i < static_cast<size_t>(table_.inputs.size); ++i) {
    FLA_RETURN_IF_ERROR(api_->KernelContext_GetInput(context, i, &inputs[i]));
  }
  std::shared_ptr<const Checked> checked;
  FLA_RETURN_IF_ERROR(check(inputs, &checked));

  Host host{api_, context, nullptr};
  Scratch scratch{api_, context, allocator_, {}};
  Call call{attributes_, checked->dims, checked->inputs, {}, {}, {}, {threads_, run_on_host, &host},
            {}};
  for (int i = 0; i < table_.inputs.size; ++i) {
    if (!inputs[i]) continue;
    void* data = nullptr;
    FLA_RETURN_IF_ERROR(api_->GetTensorMutableData(const_cast<OrtValue*>(inputs[i]), &data));
    call.input_data[i] = data;
  }
  FLA_RETURN_IF_ERROR(make_outputs(context, *checked, &call));
  if (backend_.provider) {
    call.gpu = {nullptr, Scratch::take, &scratch};
    FLA_RETURN_IF_ERROR(api_->KernelContext_GetGPUComputeStream(context, &call.gpu.stream));
  }
  const std::string problem = backend_.run(call);
  if (host.failure) return host.failure;
  if (problem.empty()) return nullptr;
  return api_->CreateStatus(ORT_FAIL, (std::string(table_.name) + ": " + problem).c_str());
}

OrtStatus* Kernel::check(const OrtValue* const* inputs,
                         std::shared_ptr<const Checked>* checked) const {
  Signature signature;
  const bool has_signature = read_signature(inputs, &signature);
  if (has_signature) {
    *checked = std::atomic_load(&latest_);
    if (*checked && same((*checked)->signature, signature)) return nullptr;
  }
  auto fresh = std::make_shared<Checked>();
  fresh->signature = signature;
  fresh->inputs.resize(table_.inputs.size);
  for (int i = 0; i < table_.inputs.size; ++i) {
    if (inputs[i]) FLA_RETURN_IF_ERROR(read_spec(inputs[i], &fresh->inputs[i]));
  }
  FLA_RETURN_IF_ERROR(invalid_argument(api_, check_presence(table_, attributes_, fresh->inputs)));
  FLA_RETURN_IF_ERROR(invalid_argument(api_, check_types(table_, fresh->inputs)));
  FLA_RETURN_IF_ERROR(
      invalid_argument(api_, solve_dims(table_, attributes_, fresh->inputs, &fresh->dims)));
  for (int i = 0; i < table_.outputs.size; ++i) {
    fresh->output_shapes[i] = output_shape(table_, i, fresh->dims);
  }
  *checked = fresh;
  if (has_signature) std::atomic_store(&latest_, *checked);
  return nullptr;
}

bool Kernel::read_signature(const OrtValue* const* inputs, Signature* signature) const {
  if (api_version_ < kShapeReferenceVersion) return false;
  for (int i = 0; i < table_.inputs.size; ++i) {
    if (!inputs[i]) continue;
    Signature::Input& input = signature->inputs[i];
    const int64_t* sizes = nullptr;
    if (!succeeded(api_, api_->GetTensorElementTypeAndShapeDataReference(inputs[i], &input.type,
                                                                         &sizes, &input.rank)) ||
        input.rank > kMaxRank) {
      return false;
    }
    input.present = true;
    std::copy(sizes, sizes + input.rank, input.sizes);
  }
  return true;
}

OrtStatus* Kernel::make_outputs(OrtKernelContext* context, const Checked& checked,
                                Call* call) const {
  size_t count = 0;
  FLA_RETURN_IF_ERROR(api_->KernelContext_GetOutputCount(context, &count));
  for (int i = 0; i < table_.outputs.size && static_cast<size_t>(i) < count; ++i) {
    const std::vector<int64_t>& shape = checked.output_shapes[i];
    OrtValue* value = nullptr;
    FLA_RETURN_IF_ERROR(
        api_->KernelContext_GetOutput(context, i, shape.data(), shape.size(), &value));
    if (!value) continue;
    FLA_RETURN_IF_ERROR(read_dtype(value, &call->output_dtypes[i]));
    FLA_RETURN_IF_ERROR(api_->GetTensorMutableData(value, &call->output_data[i]));
  }
  return nullptr;
}

OrtStatus* Kernel::read_dtype(const OrtValue* value, DType* dtype) const {
  if (api_version_ < kShapeReferenceVersion) {
    TensorSpec spec;
    FLA_RETURN_IF_ERROR(read_spec(value, &spec));
    *dtype = spec.dtype;
    return nullptr;
  }
  ONNXTensorElementDataType element;
  const int64_t* sizes;
  size_t rank;
  FLA_RETURN_IF_ERROR(
      api_->GetTensorElementTypeAndShapeDataReference(value, &element, &sizes, &rank));
  return fla::read_dtype(api_, element, dtype);
}

OrtStatus* Kernel::read_spec(const OrtValue* value, TensorSpec* spec) const {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  FLA_RETURN_IF_ERROR(api_->GetTensorTypeAndShape(value, &info));
  OrtStatus* status = read_type_and_shape(api_, info, spec);
  api_->ReleaseTensorTypeAndShapeInfo(info);
  return status;
}

}  // namespace fla
