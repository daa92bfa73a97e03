// What the addon keeps per JavaScript environment (main thread and each worker thread).
#pragma once

#include <napi.h>

#include <memory>

#include "ort.h"

namespace fla {

struct Addon {
  Napi::FunctionReference value;
  Napi::FunctionReference session;
  Napi::FunctionReference run_options;
  std::shared_ptr<Environment> environment;  // set by init()
  bool copy_outputs = false;

  static Addon& of(Napi::Env env) { return *env.GetInstanceData<Addon>(); }
};

// The JavaScript form of a failure: an Error with `ortCode`.
Napi::Error to_error(Napi::Env env, const std::exception& failure);

// Runs `body`, turning C++ exceptions into JavaScript ones.
template <typename F>
auto guarded(Napi::Env env, F body) -> decltype(body()) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (const std::exception& failure) {
    throw to_error(env, failure);
  }
}

}  // namespace fla
