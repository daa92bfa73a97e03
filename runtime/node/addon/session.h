// An ONNX Runtime session for JavaScript.
#pragma once

#include <napi.h>

#include <memory>
#include <string>
#include <vector>

#include "ort.h"
#include "value.h"

namespace fla {

// The session itself. Runs in flight share it with the JavaScript handle, so dispose() never pulls
// it from under them.
class LoadedSession : public std::enable_shared_from_this<LoadedSession> {
 public:
  // Takes over `session`. `device` is the GPU it was made for, or kHost.
  LoadedSession(std::shared_ptr<Environment> environment, OrtSession* session, int device);

  OrtSession* get() const { return session_.get(); }
  const std::shared_ptr<Environment>& environment() const { return environment_; }
  const std::vector<std::string>& inputs() const { return inputs_; }
  const std::vector<std::string>& outputs() const { return outputs_; }
  int device() const { return device_; }
  const OrtMemoryInfo* device_memory() const { return memory_.get(); }  // null for kHost

  // Zeros in the memory that the session computes in.
  std::shared_ptr<Tensor> allocate(ONNXTensorElementDataType type,
                                   const std::vector<int64_t>& dims);

 private:
  std::shared_ptr<Environment> environment_;
  OrtHandle<OrtSession> session_;
  int device_;
  OrtHandle<OrtMemoryInfo> memory_ = own(static_cast<OrtMemoryInfo*>(nullptr));
  OrtHandle<OrtAllocator> allocator_ = own(static_cast<OrtAllocator*>(nullptr));
  std::vector<std::string> inputs_;
  std::vector<std::string> outputs_;
};

// JavaScript handle (NativeSession in runtime/node/native.ts):
//   inputs, outputs      [{ name, type, shape }]; type undefined for what is no tensor
//   metadata             the model's metadata_props
//   run(...)             promise; see Session::run
//   allocate(type, dims) zeros where the session computes
//   endProfiling()       path of the profile that was written
//   dispose()
class Session : public Napi::ObjectWrap<Session> {
 public:
  static Napi::Function define(Napi::Env env);
  // create(model: string | Uint8Array, options) -> promise of a Session
  static Napi::Value create(const Napi::CallbackInfo& info);

  explicit Session(const Napi::CallbackInfo& info);

 private:
  LoadedSession& loaded() const;
  Napi::Value get_inputs(const Napi::CallbackInfo& info);
  Napi::Value get_outputs(const Napi::CallbackInfo& info);
  Napi::Value get_metadata(const Napi::CallbackInfo& info);
  Napi::Value run(const Napi::CallbackInfo& info);
  Napi::Value allocate(const Napi::CallbackInfo& info);
  Napi::Value end_profiling(const Napi::CallbackInfo& info);
  void dispose(const Napi::CallbackInfo& info);

  std::shared_ptr<LoadedSession> session_;
};

}  // namespace fla
