// An ONNX Runtime session for JavaScript.
#pragma once

#include <napi.h>

#include <memory>
#include <string>
#include <vector>

#include "ort.h"

namespace fla {

// The session itself. Runs in flight share it with the JavaScript handle, so dispose() never pulls
// it from under them.
class LoadedSession {
 public:
  LoadedSession(std::shared_ptr<Environment> environment, OrtSession* session);
  ~LoadedSession();
  LoadedSession(const LoadedSession&) = delete;
  LoadedSession& operator=(const LoadedSession&) = delete;

  OrtSession* get() const { return session_; }
  const std::shared_ptr<Environment>& environment() const { return environment_; }
  const std::vector<std::string>& inputs() const { return inputs_; }
  const std::vector<std::string>& outputs() const { return outputs_; }

 private:
  std::shared_ptr<Environment> environment_;
  OrtSession* session_;
  std::vector<std::string> inputs_;
  std::vector<std::string> outputs_;
};

// JavaScript handle (NativeSession in runtime/node/native.ts):
//   inputs, outputs      [{ name, type, shape }]; type undefined for what is no tensor
//   metadata             the model's metadata_props
//   run(...)             promise; see Session::run
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
  Napi::Value end_profiling(const Napi::CallbackInfo& info);
  void dispose(const Napi::CallbackInfo& info);

  std::shared_ptr<LoadedSession> session_;
};

}  // namespace fla
