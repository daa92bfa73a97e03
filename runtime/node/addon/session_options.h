// JavaScript options -> OrtSessionOptions and OrtRunOptions.
#pragma once

#include <napi.h>

#include "ort.h"

namespace fla {

// `options` as runtime/node/options.ts writes them (NativeSessionOptions there). Everything is
// optional.
OrtHandle<OrtSessionOptions> read_session_options(const Napi::Object& options);

// JavaScript handle of an OrtRunOptions, which may be in use by several runs:
//   new RunOptions({ logSeverityLevel, logVerbosityLevel, tag, terminate, config: [[key, value],
//   ...] }) terminate()    makes the runs that use it stop at the next node
class RunOptions : public Napi::ObjectWrap<RunOptions> {
 public:
  static Napi::Function define(Napi::Env env);
  // Null for undefined.
  static std::shared_ptr<OrtRunOptions> unwrap(const Napi::Value& value);

  explicit RunOptions(const Napi::CallbackInfo& info);

 private:
  void terminate(const Napi::CallbackInfo& info);

  std::shared_ptr<OrtRunOptions> options_;
};

}  // namespace fla
