#include "value.h"

#include <cstring>
#include <limits>

#include "addon.h"
#include "cuda.h"
#include "task.h"

namespace fla {
namespace {

// Bits per element; 0 for types that this addon does not move (complex, float8, float4).
int element_bits(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT4:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4:
      return 4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
      return 8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return 16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32:
      return 32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64:
      return 64;
    default:
      return 0;
  }
}

size_t element_count(const std::vector<int64_t>& dims) {
  size_t count = 1;
  for (int64_t dim : dims) {
    if (dim < 0) throw OrtFailure(ORT_INVALID_ARGUMENT, "dims must be >= 0");
    if (dim != 0 && count > std::numeric_limits<int64_t>::max() / 8 / static_cast<size_t>(dim)) {
      throw OrtFailure(ORT_INVALID_ARGUMENT, "dims are too large");
    }
    count *= static_cast<size_t>(dim);
  }
  return count;
}

}  // namespace

size_t tensor_bytes(ONNXTensorElementDataType type, const std::vector<int64_t>& dims) {
  const int bits = element_bits(type);
  if (bits == 0)
    throw OrtFailure(ORT_NOT_IMPLEMENTED, "unsupported tensor type " + std::to_string(type));
  return (element_count(dims) * bits + 7) / 8;
}

Tensor::Tensor(std::shared_ptr<Environment> environment, OrtValue* value,
               std::shared_ptr<void> owner)
    : environment_(std::move(environment)), value_(value) {
  try {
    describe();
  } catch (...) {
    ort().ReleaseValue(value_);
    throw;
  }
  if (device_ != kHost) owner_ = std::move(owner);
}

Tensor::Tensor(std::shared_ptr<Environment> environment, ONNXTensorElementDataType type,
               const std::vector<int64_t>& dims)
    : environment_(std::move(environment)),
      type_(type),
      dims_(dims),
      bytes_(tensor_bytes(type, dims)) {
  // Not ONNX Runtime's default allocator: it calls posix_memalign, and glibc before 2.38 does not
  // reuse what was freed from that (bug 14581), so that memory would grow with every tensor.
  constexpr size_t kAlignment = 64;
  memory_.reset(std::calloc(bytes_ + kAlignment, 1));
  if (memory_ == nullptr) {
    throw OrtFailure(ORT_FAIL, "out of memory: " + std::to_string(bytes_) + " bytes");
  }
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.get());
  data_ = reinterpret_cast<uint8_t*>((address + kAlignment - 1) / kAlignment * kAlignment);
  check(ort().CreateTensorWithDataAsOrtValue(cpu_memory(), data_, bytes_, dims.data(), dims.size(),
                                             type, &value_));
}

Tensor::~Tensor() { ort().ReleaseValue(value_); }

void Tensor::describe() {
  int is_tensor = 0;
  check(ort().IsTensor(value_, &is_tensor));
  if (!is_tensor)
    throw OrtFailure(ORT_NOT_IMPLEMENTED, "is no tensor; sequences and maps are unsupported");
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check(ort().GetTensorTypeAndShape(value_, &raw));
  const auto info = own(raw);
  check(ort().GetTensorElementType(info.get(), &type_));
  size_t rank = 0;
  check(ort().GetDimensionsCount(info.get(), &rank));
  dims_.resize(rank);
  check(ort().GetDimensions(info.get(), dims_.data(), rank));
  if (type_ == ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING) return;
  bytes_ = tensor_bytes(type_, dims_);
  void* data = nullptr;
  check(ort().GetTensorMutableData(value_, &data));
  data_ = static_cast<uint8_t*>(data);
  const OrtMemoryInfo* memory = nullptr;
  const char* name = nullptr;
  check(ort().GetTensorMemoryInfo(value_, &memory));
  check(ort().MemoryInfoGetName(memory, &name));
  if (std::strcmp(name, kCudaMemory) == 0) check(ort().MemoryInfoGetId(memory, &device_));
}

void copy_tensor(const Tensor& to, const Tensor& from) {
  if (to.bytes() == 0) return;
  if (from.device() == kHost && to.device() == kHost) {
    std::memmove(to.data(), from.data(), to.bytes());
  } else if (from.device() == kHost) {
    cuda::to_device(to.device(), to.data(), from.data(), to.bytes());
  } else if (to.device() == kHost) {
    cuda::to_host(from.device(), to.data(), from.data(), to.bytes());
  } else {
    cuda::on_device(to.device(), to.data(), from.data(), to.bytes());
  }
}

std::vector<int64_t> read_dims(const Napi::Value& value) {
  const Napi::Array array = value.As<Napi::Array>();
  std::vector<int64_t> dims(array.Length());
  for (uint32_t i = 0; i < dims.size(); ++i) dims[i] = array.Get(i).As<Napi::Number>().Int64Value();
  return dims;
}

Napi::Array write_dims(Napi::Env env, const std::vector<int64_t>& dims) {
  Napi::Array array = Napi::Array::New(env, dims.size());
  for (uint32_t i = 0; i < dims.size(); ++i) array.Set(i, static_cast<double>(dims[i]));
  return array;
}

Napi::ArrayBuffer array_buffer_over(Napi::Env env, const std::shared_ptr<Tensor>& tensor,
                                    bool copy) {
  const size_t bytes = tensor->bytes();
  if (bytes > 0 && !copy) {
    auto* share = new std::shared_ptr<Tensor>(tensor);
    napi_value result = nullptr;
    const napi_status status = napi_create_external_arraybuffer(
        env, tensor->data(), bytes,
        [](napi_env, void*, void* hint) { delete static_cast<std::shared_ptr<Tensor>*>(hint); },
        share, &result);
    if (status == napi_ok) return Napi::ArrayBuffer(env, result);
    delete share;
    if (status != napi_no_external_buffers_allowed) throw Napi::Error::New(env);
  }
  Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(env, bytes);
  if (bytes > 0) std::memcpy(buffer.Data(), tensor->data(), bytes);
  return buffer;
}

Napi::Array read_strings(Napi::Env env, const Tensor& tensor) {
  const size_t count = element_count(tensor.dims());
  Napi::Array strings = Napi::Array::New(env, count);
  size_t bytes = 0;
  check(ort().GetStringTensorDataLength(tensor.value(), &bytes));
  std::vector<char> text(bytes + 1);
  std::vector<size_t> offsets(count + 1, bytes);
  if (count > 0)
    check(ort().GetStringTensorContent(tensor.value(), text.data(), bytes, offsets.data(), count));
  for (uint32_t i = 0; i < count; ++i) {
    strings.Set(i, Napi::String::New(env, text.data() + offsets[i], offsets[i + 1] - offsets[i]));
  }
  return strings;
}

static OrtValue* copy_strings(const std::vector<int64_t>& dims, const Napi::Array& array) {
  const size_t count = element_count(dims);
  if (array.Length() != count) {
    throw OrtFailure(ORT_INVALID_ARGUMENT, "data must have " + std::to_string(count) +
                                               " strings, received " +
                                               std::to_string(array.Length()));
  }
  std::vector<std::string> strings(count);
  std::vector<const char*> pointers(count);
  for (uint32_t i = 0; i < count; ++i) {
    const Napi::Value item = array.Get(i);
    if (!item.IsString())
      throw OrtFailure(ORT_INVALID_ARGUMENT, "data of a string tensor must be strings");
    strings[i] = item.As<Napi::String>().Utf8Value();
    pointers[i] = strings[i].c_str();
  }
  OrtValue* value = nullptr;
  check(ort().CreateTensorAsOrtValue(default_allocator(), dims.data(), dims.size(),
                                     ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING, &value));
  if (OrtStatus* status = ort().FillStringTensor(value, pointers.data(), count)) {
    ort().ReleaseValue(value);
    check(status);
  }
  return value;
}

std::shared_ptr<Tensor> tensor_over(std::shared_ptr<Environment> environment,
                                    ONNXTensorElementDataType type,
                                    const std::vector<int64_t>& dims, const Napi::Value& data) {
  OrtValue* value = nullptr;
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING) {
    value = copy_strings(dims, data.As<Napi::Array>());
  } else {
    Napi::Uint8Array bytes = data.As<Napi::Uint8Array>();
    const size_t expected = tensor_bytes(type, dims);
    if (bytes.ByteLength() != expected) {
      throw OrtFailure(ORT_INVALID_ARGUMENT, "data must have " + std::to_string(expected) +
                                                 " bytes, received " +
                                                 std::to_string(bytes.ByteLength()));
    }
    // ONNX Runtime refuses a null pointer even where there is nothing to point at.
    static uint8_t nothing = 0;
    void* pointer = expected == 0 ? &nothing : bytes.Data();
    check(ort().CreateTensorWithDataAsOrtValue(cpu_memory(), pointer, expected, dims.data(),
                                               dims.size(), type, &value));
  }
  return std::make_shared<Tensor>(std::move(environment), value);
}

Napi::Function Value::define(Napi::Env env) {
  return DefineClass(
      env, "Value",
      {InstanceAccessor<&Value::get_type>("type"), InstanceAccessor<&Value::get_dims>("dims"),
       InstanceAccessor<&Value::get_byte_length>("byteLength"),
       InstanceAccessor<&Value::get_device>("device"), InstanceMethod<&Value::buffer>("buffer"),
       InstanceMethod<&Value::read>("read"), InstanceMethod<&Value::download>("download"),
       InstanceMethod<&Value::write>("write"), InstanceMethod<&Value::dispose>("dispose")});
}

Napi::Object Value::wrap(Napi::Env env, std::shared_ptr<Tensor> tensor) {
  return Addon::of(env).value.New({Napi::External<std::shared_ptr<Tensor>>::New(env, &tensor)});
}

std::shared_ptr<Tensor> Value::unwrap(const Napi::Value& value) {
  if (!value.IsObject()) return nullptr;
  const Napi::Object object = value.As<Napi::Object>();
  if (!object.InstanceOf(Addon::of(value.Env()).value.Value())) return nullptr;
  return Napi::ObjectWrap<Value>::Unwrap(object)->tensor();
}

Value::Value(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Value>(info) {
  guarded(info.Env(), [&] {
    if (info[0].IsExternal()) {
      hold(info.Env(), *info[0].As<Napi::External<std::shared_ptr<Tensor>>>().Data());
      return;
    }
    const auto type =
        static_cast<ONNXTensorElementDataType>(info[0].As<Napi::Number>().Int32Value());
    hold(info.Env(),
         std::make_shared<Tensor>(Addon::of(info.Env()).environment, type, read_dims(info[1])));
  });
}

void Value::Finalize(Napi::Env env) { release(env); }

const std::shared_ptr<Tensor>& Value::tensor() const {
  if (tensor_ == nullptr) throw OrtFailure(ORT_FAIL, "the tensor was disposed");
  return tensor_;
}

// The engine counts ArrayBuffers itself; it has to be told about memory that only a handle keeps.
void Value::hold(Napi::Env env, std::shared_ptr<Tensor> tensor) {
  Napi::MemoryManagement::AdjustExternalMemory(env, static_cast<int64_t>(tensor->bytes()));
  tensor_ = std::move(tensor);
}

void Value::release(Napi::Env env) {
  if (tensor_ == nullptr) return;
  Napi::MemoryManagement::AdjustExternalMemory(env, -static_cast<int64_t>(tensor_->bytes()));
  tensor_.reset();
}

Napi::Value Value::get_type(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return Napi::Number::New(info.Env(), tensor()->type()); });
}

Napi::Value Value::get_dims(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return write_dims(info.Env(), tensor()->dims()); });
}

Napi::Value Value::get_byte_length(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return Napi::Number::New(info.Env(), static_cast<double>(tensor()->bytes()));
  });
}

Napi::Value Value::get_device(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return Napi::Number::New(info.Env(), tensor()->device()); });
}

Napi::Value Value::buffer(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return array_buffer_over(info.Env(), tensor(), false); });
}

// Offset and length in bytes, checked against the tensor.
static std::pair<size_t, size_t> read_range(const Tensor& tensor, int64_t offset, int64_t length) {
  if (offset < 0 || length < 0 ||
      static_cast<uint64_t>(offset) + static_cast<uint64_t>(length) > tensor.bytes()) {
    throw OrtFailure(ORT_INVALID_ARGUMENT,
                     "byte range must be within [0, " + std::to_string(tensor.bytes()) +
                         "), received " + std::to_string(offset) + " + " + std::to_string(length));
  }
  return {offset, length};
}

static void read_bytes(const Tensor& tensor, size_t offset, size_t length, void* to) {
  if (tensor.device() != kHost) {
    cuda::to_host(tensor.device(), to, tensor.data() + offset, length);
  } else if (length > 0) {
    std::memcpy(to, tensor.data() + offset, length);
  }
}

Napi::Value Value::read(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto [offset, length] = read_range(*tensor(), info[0].As<Napi::Number>().Int64Value(),
                                             info[1].As<Napi::Number>().Int64Value());
    Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(info.Env(), length);
    read_bytes(*tensor(), offset, length, buffer.Data());
    return buffer;
  });
}

void Value::write(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    Napi::Uint8Array bytes = info[0].As<Napi::Uint8Array>();
    const auto [offset, length] =
        read_range(*tensor(), info[1].As<Napi::Number>().Int64Value(), bytes.ByteLength());
    if (tensor()->device() != kHost) {
      cuda::to_device(tensor()->device(), tensor()->data() + offset, bytes.Data(), length);
    } else if (length > 0) {
      std::memcpy(tensor()->data() + offset, bytes.Data(), length);
    }
  });
}

namespace {

// A copy of a whole tensor in JavaScript memory.
class DownloadTask : public Task {
 public:
  DownloadTask(Napi::Env env, std::shared_ptr<Tensor> tensor)
      : Task(env), tensor_(std::move(tensor)) {
    Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(env, tensor_->bytes());
    bytes_ = buffer.Data();
    buffer_ = Napi::Persistent(buffer);
  }

 private:
  void work() override { read_bytes(*tensor_, 0, tensor_->bytes(), bytes_); }
  Napi::Value finish(Napi::Env) override { return buffer_.Value(); }

  std::shared_ptr<Tensor> tensor_;
  Napi::Reference<Napi::ArrayBuffer> buffer_;
  void* bytes_;
};

}  // namespace

Napi::Value Value::download(const Napi::CallbackInfo& info) {
  return guarded(info.Env(),
                 [&] { return Task::start(std::make_unique<DownloadTask>(info.Env(), tensor())); });
}

void Value::dispose(const Napi::CallbackInfo& info) { release(info.Env()); }

}  // namespace fla
