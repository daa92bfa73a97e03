#include "session_options.h"

#include <string>
#include <utility>
#include <vector>

#include "addon.h"

namespace fla {
namespace {

// Calls `use` with the option when it is given.
template <typename F>
void given(const Napi::Object& options, const char* name, F use) {
  const Napi::Value value = options.Get(name);
  if (!value.IsUndefined()) use(value);
}

int to_int(const Napi::Value& value) { return value.As<Napi::Number>().Int32Value(); }
bool to_bool(const Napi::Value& value) { return value.As<Napi::Boolean>().Value(); }
std::string to_text(const Napi::Value& value) { return value.As<Napi::String>().Utf8Value(); }

using Pairs = std::vector<std::pair<std::string, std::string>>;

Pairs to_pairs(const Napi::Value& value) {
  const Napi::Array array = value.As<Napi::Array>();
  Pairs pairs;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const Napi::Array pair = array.Get(i).As<Napi::Array>();
    pairs.emplace_back(to_text(pair.Get(0u)), to_text(pair.Get(1u)));
  }
  return pairs;
}

void set_threads_and_graph(OrtSessionOptions* out, const Napi::Object& in) {
  given(in, "intraOpNumThreads",
        [&](Napi::Value v) { check(ort().SetIntraOpNumThreads(out, to_int(v))); });
  given(in, "interOpNumThreads",
        [&](Napi::Value v) { check(ort().SetInterOpNumThreads(out, to_int(v))); });
  given(in, "graphOptimizationLevel", [&](Napi::Value v) {
    check(ort().SetSessionGraphOptimizationLevel(out,
                                                 static_cast<GraphOptimizationLevel>(to_int(v))));
  });
  given(in, "executionMode", [&](Napi::Value v) {
    check(ort().SetSessionExecutionMode(out, static_cast<ExecutionMode>(to_int(v))));
  });
  given(in, "optimizedModelFilePath",
        [&](Napi::Value v) { check(ort().SetOptimizedModelFilePath(out, to_text(v).c_str())); });
  given(in, "freeDimensionOverrides", [&](Napi::Value v) {
    const Napi::Object dims = v.As<Napi::Object>();
    const Napi::Array names = dims.GetPropertyNames();
    for (uint32_t i = 0; i < names.Length(); ++i) {
      const std::string name = to_text(names.Get(i));
      check(ort().AddFreeDimensionOverrideByName(out, name.c_str(),
                                                 dims.Get(name).As<Napi::Number>().Int64Value()));
    }
  });
}

void set_memory_and_logging(OrtSessionOptions* out, const Napi::Object& in) {
  given(in, "enableCpuMemArena", [&](Napi::Value v) {
    check(to_bool(v) ? ort().EnableCpuMemArena(out) : ort().DisableCpuMemArena(out));
  });
  given(in, "enableMemPattern", [&](Napi::Value v) {
    check(to_bool(v) ? ort().EnableMemPattern(out) : ort().DisableMemPattern(out));
  });
  given(in, "profileFilePrefix",
        [&](Napi::Value v) { check(ort().EnableProfiling(out, to_text(v).c_str())); });
  given(in, "logId", [&](Napi::Value v) { check(ort().SetSessionLogId(out, to_text(v).c_str())); });
  given(in, "logSeverityLevel",
        [&](Napi::Value v) { check(ort().SetSessionLogSeverityLevel(out, to_int(v))); });
  given(in, "logVerbosityLevel",
        [&](Napi::Value v) { check(ort().SetSessionLogVerbosityLevel(out, to_int(v))); });
}

// ONNX Runtime copies what it needs while the session is created; until then the caller keeps the
// arrays.
void set_external_data(OrtSessionOptions* out, const Napi::Array& files) {
  std::vector<std::string> names;
  std::vector<const ORTCHAR_T*> name_pointers;
  std::vector<char*> contents;
  std::vector<size_t> lengths;
  for (uint32_t i = 0; i < files.Length(); ++i) {
    const Napi::Object file = files.Get(i).As<Napi::Object>();
    Napi::Uint8Array data = file.Get("data").As<Napi::Uint8Array>();
    names.push_back(to_text(file.Get("path")));
    contents.push_back(reinterpret_cast<char*>(data.Data()));
    lengths.push_back(data.ByteLength());
  }
  for (const std::string& name : names) name_pointers.push_back(name.c_str());
  check(ort().AddExternalInitializersFromFilesInMemory(out, name_pointers.data(), contents.data(),
                                                       lengths.data(), names.size()));
}

void append_cuda(OrtSessionOptions* out, const Pairs& entries) {
  OrtCUDAProviderOptionsV2* raw = nullptr;
  check(ort().CreateCUDAProviderOptions(&raw));
  const auto cuda = own(raw);
  std::vector<const char*> keys, values;
  for (const auto& [key, value] : entries) {
    keys.push_back(key.c_str());
    values.push_back(value.c_str());
  }
  check(ort().UpdateCUDAProviderOptions(raw, keys.data(), values.data(), keys.size()));
  check(ort().SessionOptionsAppendExecutionProvider_CUDA_V2(out, raw));
}

}  // namespace

OrtHandle<OrtSessionOptions> read_session_options(const Napi::Object& in) {
  OrtSessionOptions* raw = nullptr;
  check(ort().CreateSessionOptions(&raw));
  auto out = own(raw);
  set_threads_and_graph(raw, in);
  set_memory_and_logging(raw, in);
  given(in, "config", [&](Napi::Value v) {
    for (const auto& [key, value] : to_pairs(v))
      check(ort().AddSessionConfigEntry(raw, key.c_str(), value.c_str()));
  });
  given(in, "externalData", [&](Napi::Value v) { set_external_data(raw, v.As<Napi::Array>()); });
  given(in, "cuda", [&](Napi::Value v) {
    const Pairs entries = to_pairs(v);
    try {
      append_cuda(raw, entries);
    } catch (const OrtFailure& failure) {
      throw OrtFailure(ORT_EP_FAIL, failure.what());
    }
  });
  given(in, "library",
        [&](Napi::Value v) { check(ort().RegisterCustomOpsLibrary_V2(raw, to_text(v).c_str())); });
  return out;
}

Napi::Function RunOptions::define(Napi::Env env) {
  return DefineClass(env, "RunOptions", {InstanceMethod<&RunOptions::terminate>("terminate")});
}

std::shared_ptr<OrtRunOptions> RunOptions::unwrap(const Napi::Value& value) {
  if (value.IsUndefined()) return nullptr;
  return Napi::ObjectWrap<RunOptions>::Unwrap(value.As<Napi::Object>())->options_;
}

RunOptions::RunOptions(const Napi::CallbackInfo& info) : Napi::ObjectWrap<RunOptions>(info) {
  guarded(info.Env(), [&] {
    OrtRunOptions* raw = nullptr;
    check(ort().CreateRunOptions(&raw));
    options_ =
        std::shared_ptr<OrtRunOptions>(raw, [](OrtRunOptions* p) { ort().ReleaseRunOptions(p); });
    const Napi::Object in = info[0].As<Napi::Object>();
    given(in, "logSeverityLevel",
          [&](Napi::Value v) { check(ort().RunOptionsSetRunLogSeverityLevel(raw, to_int(v))); });
    given(in, "logVerbosityLevel",
          [&](Napi::Value v) { check(ort().RunOptionsSetRunLogVerbosityLevel(raw, to_int(v))); });
    given(in, "tag",
          [&](Napi::Value v) { check(ort().RunOptionsSetRunTag(raw, to_text(v).c_str())); });
    given(in, "config", [&](Napi::Value v) {
      for (const auto& [key, value] : to_pairs(v))
        check(ort().AddRunConfigEntry(raw, key.c_str(), value.c_str()));
    });
    given(in, "terminate", [&](Napi::Value v) {
      if (to_bool(v)) check(ort().RunOptionsSetTerminate(raw));
    });
  });
}

void RunOptions::terminate(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { check(ort().RunOptionsSetTerminate(options_.get())); });
}

}  // namespace fla
