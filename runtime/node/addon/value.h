// Tensors in native memory and their passage between JavaScript and ONNX Runtime.
#pragma once

#include <napi.h>

#include <cstdlib>
#include <memory>
#include <vector>

#include "ort.h"

namespace fla {

// Tensor::device() of what is in the host's memory.
constexpr int kHost = -1;
// ONNX Runtime's name for GPU memory.
constexpr const char* kCudaMemory = "Cuda";

// One OrtValue that holds a tensor, in the host's or a GPU's memory. Shared by runs in flight,
// JavaScript handles and ArrayBuffers over it.
class Tensor {
 public:
  // Takes over `value`. `owner` is kept alive as long as memory of a GPU is: the session whose
  // allocator gave it.
  Tensor(std::shared_ptr<Environment> environment, OrtValue* value,
         std::shared_ptr<void> owner = nullptr);
  // Allocates zeros in the host's memory.
  Tensor(std::shared_ptr<Environment> environment, ONNXTensorElementDataType type,
         const std::vector<int64_t>& dims);
  ~Tensor();
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  OrtValue* value() const { return value_; }
  ONNXTensorElementDataType type() const { return type_; }
  const std::vector<int64_t>& dims() const { return dims_; }
  uint8_t* data() const { return data_; }  // null for strings
  size_t bytes() const { return bytes_; }  // 0 for strings
  int device() const { return device_; }   // number of the GPU, or kHost

 private:
  void describe();

  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };

  std::shared_ptr<Environment> environment_;
  std::shared_ptr<void> owner_;
  std::unique_ptr<void, Free> memory_;  // of a tensor that we allocated
  OrtValue* value_ = nullptr;
  ONNXTensorElementDataType type_ = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> dims_;
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
  int device_ = kHost;
};

// Copies between tensors of one size, wherever they are; waits until it is done.
void copy_tensor(const Tensor& to, const Tensor& from);

// Bytes that a tensor takes, 4-bit types packed two to a byte. Throws for a type without a fixed
// size.
size_t tensor_bytes(ONNXTensorElementDataType type, const std::vector<int64_t>& dims);

std::vector<int64_t> read_dims(const Napi::Value& dims);
Napi::Array write_dims(Napi::Env env, const std::vector<int64_t>& dims);

// An ArrayBuffer over the tensor's own memory; the tensor lives until the ArrayBuffer is collected.
// Where the engine forbids external memory, or `copy` is set, the bytes are copied.
Napi::ArrayBuffer array_buffer_over(Napi::Env env, const std::shared_ptr<Tensor>& tensor,
                                    bool copy);

Napi::Array read_strings(Napi::Env env, const Tensor& tensor);

// A tensor over the caller's bytes (Uint8Array), which must stay alive, or a copy of the caller's
// string[].
std::shared_ptr<Tensor> tensor_over(std::shared_ptr<Environment> environment,
                                    ONNXTensorElementDataType type,
                                    const std::vector<int64_t>& dims, const Napi::Value& data);

// JavaScript handle of a Tensor:
//   new Value(type, dims)          zeros
//   type, dims, byteLength         as of the tensor
//   device                         number of the GPU that holds it, or -1
//   buffer()                       ArrayBuffer over the tensor's memory, which is the host's
//   read(offset, length)           copy of some bytes
//   download()                     promise of an ArrayBuffer with a copy of it all
//   write(bytes, offset)           overwrites some bytes
//   dispose()                      gives up this handle's share
class Value : public Napi::ObjectWrap<Value> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Object wrap(Napi::Env env, std::shared_ptr<Tensor> tensor);
  // The tensor behind `value`, or null when it is no handle. Throws when it was disposed.
  static std::shared_ptr<Tensor> unwrap(const Napi::Value& value);

  explicit Value(const Napi::CallbackInfo& info);
  void Finalize(Napi::Env env) override;

 private:
  const std::shared_ptr<Tensor>& tensor() const;
  void hold(Napi::Env env, std::shared_ptr<Tensor> tensor);
  void release(Napi::Env env);

  Napi::Value get_type(const Napi::CallbackInfo& info);
  Napi::Value get_dims(const Napi::CallbackInfo& info);
  Napi::Value get_byte_length(const Napi::CallbackInfo& info);
  Napi::Value get_device(const Napi::CallbackInfo& info);
  Napi::Value buffer(const Napi::CallbackInfo& info);
  Napi::Value read(const Napi::CallbackInfo& info);
  Napi::Value download(const Napi::CallbackInfo& info);
  void write(const Napi::CallbackInfo& info);
  void dispose(const Napi::CallbackInfo& info);

  std::shared_ptr<Tensor> tensor_;
};

}  // namespace fla
