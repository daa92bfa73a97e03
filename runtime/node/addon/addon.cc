#include "addon.h"

#include <dlfcn.h>

#include "session.h"
#include "session_options.h"
#include "value.h"

namespace fla {

Napi::Error to_error(Napi::Env env, const std::exception& failure) {
  Napi::Error error = Napi::Error::New(env, failure.what());
  if (const auto* from_ort = dynamic_cast<const OrtFailure*>(&failure))
    error.Set("ortCode", Napi::Number::New(env, from_ort->code));
  return error;
}

namespace {

// init({ library, logLevel, copyOutputs }) -> { version, apiVersion, providers }; to be called
// before anything else.
Napi::Value init(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    const Napi::Object options = info[0].As<Napi::Object>();
    load_ort(options.Get("library").As<Napi::String>().Utf8Value());
    Addon& addon = Addon::of(env);
    addon.environment =
        Environment::acquire(options.Get("logLevel").As<Napi::Number>().Int32Value());
    addon.copy_outputs = options.Get("copyOutputs").ToBoolean();
    Napi::Object about = Napi::Object::New(env);
    about.Set("version", ort_version());
    about.Set("apiVersion", ort_api_version());
    Napi::Array providers = Napi::Array::New(env);
    for (const std::string& name : ort_providers()) providers.Set(providers.Length(), name);
    about.Set("providers", providers);
    return about;
  });
}

// opsInfo(path) -> the JSON text by which the operator library describes itself.
Napi::Value ops_info(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] {
    const std::string path = info[0].As<Napi::String>().Utf8Value();
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw OrtFailure(ORT_NO_SUCHFILE, dlerror());
    const auto describe = reinterpret_cast<const char* (*)()>(dlsym(library, "fla_ops_info"));
    if (describe == nullptr) {
      dlclose(library);
      throw OrtFailure(ORT_FAIL, path + ": has no fla_ops_info");
    }
    const Napi::String text = Napi::String::New(env, describe());
    dlclose(library);
    return text;
  });
}

Napi::Object start(Napi::Env env, Napi::Object exports) {
  auto* addon = new Addon();
  env.SetInstanceData(addon);
  addon->value = Napi::Persistent(Value::define(env));
  addon->session = Napi::Persistent(Session::define(env));
  addon->run_options = Napi::Persistent(RunOptions::define(env));
  exports.Set("init", Napi::Function::New(env, init, "init"));
  exports.Set("opsInfo", Napi::Function::New(env, ops_info, "opsInfo"));
  exports.Set("createSession", Napi::Function::New(env, Session::create, "createSession"));
  exports.Set("Value", addon->value.Value());
  exports.Set("RunOptions", addon->run_options.Value());
  return exports;
}

}  // namespace
}  // namespace fla

static Napi::Object start_addon(Napi::Env env, Napi::Object exports) {
  return fla::start(env, exports);
}
NODE_API_MODULE(fla_node, start_addon)
