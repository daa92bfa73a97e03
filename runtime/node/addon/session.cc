#include "session.h"

#include <chrono>
#include <cstring>

#include "addon.h"
#include "cuda.h"
#include "session_options.h"
#include "task.h"
#include "value.h"

namespace fla {
namespace {

class CreateTask : public Task {
 public:
  CreateTask(Napi::Env env, const Napi::Value& model, const Napi::Object& options)
      : Task(env),
        environment_(Addon::of(env).environment),
        options_(read_session_options(options)) {
    if (options.Has("cudaDevice"))
      cuda_device_ = options.Get("cudaDevice").As<Napi::Number>().Int32Value();
    // The model's bytes and the external data are read on the other thread.
    pins_ = Napi::Persistent(Napi::Object::New(env));
    pins_.Set("model", model);
    pins_.Set("options", options);
    if (model.IsString()) {
      path_ = model.As<Napi::String>().Utf8Value();
    } else {
      Napi::Uint8Array bytes = model.As<Napi::Uint8Array>();
      bytes_ = bytes.Data();
      length_ = bytes.ByteLength();
    }
  }

 private:
  void work() override {
    OrtSession* session = nullptr;
    if (path_.empty()) {
      check(ort().CreateSessionFromArray(environment_->get(), bytes_, length_, options_.get(),
                                         &session));
    } else {
      check(ort().CreateSession(environment_->get(), path_.c_str(), options_.get(), &session));
    }
    session_ = std::make_shared<LoadedSession>(environment_, session, cuda_device_);
  }

  Napi::Value finish(Napi::Env env) override {
    return Addon::of(env).session.New(
        {Napi::External<std::shared_ptr<LoadedSession>>::New(env, &session_)});
  }

  std::shared_ptr<Environment> environment_;
  OrtHandle<OrtSessionOptions> options_;
  int cuda_device_ = kHost;
  Napi::ObjectReference pins_;
  std::string path_;
  const uint8_t* bytes_ = nullptr;
  size_t length_ = 0;
  std::shared_ptr<LoadedSession> session_;
};

// What the caller wants done with one output.
enum class Fetch { kArray, kHandle, kInPlace };

class RunTask : public Task {
 public:
  RunTask(Napi::Env env, std::shared_ptr<LoadedSession> session,
          std::shared_ptr<OrtRunOptions> options, const Napi::Array& inputs,
          const Napi::Array& outputs)
      : Task(env), session_(std::move(session)), options_(std::move(options)) {
    pins_ = Napi::Persistent(Napi::Object::New(env));
    pins_.Set("inputs", inputs);
    pins_.Set("outputs", outputs);
  }

  void feed(uint32_t index, const Napi::Value& value) {
    input_names_.push_back(session_->inputs().at(index).c_str());
    inputs_.push_back(tensor_of(value));
  }

  void fetch(uint32_t index, const Napi::Value& value) {
    output_names_.push_back(session_->outputs().at(index).c_str());
    const bool in_place = value.IsObject();
    fetches_.push_back(in_place            ? Fetch::kInPlace
                       : value.IsBoolean() ? Fetch::kHandle
                                           : Fetch::kArray);
    outputs_.push_back(in_place ? tensor_of(value) : nullptr);
  }

 private:
  // A handle, or { type, dims, data } over the caller's memory.
  std::shared_ptr<Tensor> tensor_of(const Napi::Value& value) {
    if (std::shared_ptr<Tensor> tensor = Value::unwrap(value)) return tensor;
    const Napi::Object object = value.As<Napi::Object>();
    const auto type =
        static_cast<ONNXTensorElementDataType>(object.Get("type").As<Napi::Number>().Int32Value());
    return tensor_over(session_->environment(), type, read_dims(object.Get("dims")),
                       object.Get("data"));
  }

  void work() override {
    const auto start = std::chrono::steady_clock::now();
    compute();
    milliseconds_ =
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  }

  void compute() {
    std::vector<const OrtValue*> in;
    std::vector<OrtValue*> out;
    for (const auto& tensor : inputs_) in.push_back(tensor->value());
    for (const auto& tensor : outputs_) out.push_back(tensor ? tensor->value() : nullptr);
    if (session_->device() == kHost) {
      check(ort().Run(session_->get(), options_.get(), input_names_.data(), in.data(), in.size(),
                      output_names_.data(), out.size(), out.data()));
    } else {
      run_bound(in, &out);
    }
    std::string failure;
    for (size_t i = 0; i < out.size(); ++i) {
      try {
        if (fetches_[i] == Fetch::kInPlace) {
          copy_passed_through(i);
        } else {
          outputs_[i] = take(out[i]);
        }
      } catch (const OrtFailure& error) {
        failure = std::string("output '") + output_names_[i] + "' " + error.what();
      }
    }
    if (!failure.empty()) throw OrtFailure(ORT_NOT_IMPLEMENTED, failure);
  }

  // A run on a GPU: arrays come to the host, handles stay there. Returns when all is done.
  void run_bound(const std::vector<const OrtValue*>& in, std::vector<OrtValue*>* out) {
    OrtIoBinding* raw = nullptr;
    check(ort().CreateIoBinding(session_->get(), &raw));
    const auto binding = own(raw);
    for (size_t i = 0; i < in.size(); ++i) check(ort().BindInput(raw, input_names_[i], in[i]));
    for (size_t i = 0; i < out->size(); ++i) {
      if (fetches_[i] == Fetch::kInPlace) {
        check(ort().BindOutput(raw, output_names_[i], (*out)[i]));
      } else {
        const bool stays = fetches_[i] == Fetch::kHandle;
        check(ort().BindOutputToDevice(raw, output_names_[i],
                                       stays ? session_->device_memory() : cpu_memory()));
      }
    }
    check(ort().RunWithBinding(session_->get(), options_.get(), raw));
    check(ort().SynchronizeBoundOutputs(raw));
    OrtValue** values = nullptr;
    size_t count = 0;
    check(ort().GetBoundOutputValues(raw, default_allocator(), &values, &count));
    for (size_t i = 0; i < count; ++i) {
      if (fetches_[i] == Fetch::kInPlace) {
        ort().ReleaseValue(values[i]);
      } else {
        (*out)[i] = values[i];
      }
    }
    if (values != nullptr) default_allocator()->Free(default_allocator(), values);
  }

  // ONNX Runtime hands a feed back as it is where the graph's output is the graph's input. That
  // memory is the caller's, so the output becomes a copy.
  std::shared_ptr<Tensor> take(OrtValue* value) {
    if (value == nullptr) throw OrtFailure(ORT_FAIL, "is an absent optional value");
    auto tensor = std::make_shared<Tensor>(session_->environment(), value, session_);
    for (const auto& input : inputs_) {
      if (tensor->bytes() == 0 || tensor->data() != input->data()) continue;
      const auto copy =
          tensor->device() == kHost
              ? std::make_shared<Tensor>(session_->environment(), tensor->type(), tensor->dims())
              : session_->allocate(tensor->type(), tensor->dims());
      copy_tensor(*copy, *tensor);
      return copy;
    }
    return tensor;
  }

  // In that same case it leaves a preallocated output as it was.
  void copy_passed_through(size_t output) {
    for (size_t i = 0; i < inputs_.size(); ++i) {
      if (std::strcmp(input_names_[i], output_names_[output]) != 0) continue;
      const Tensor& from = *inputs_[i];
      const Tensor& to = *outputs_[output];
      if (from.dims() != to.dims()) throw OrtFailure(ORT_FAIL, "must have the dims of the input");
      copy_tensor(to, from);
    }
  }

  Napi::Value result(Napi::Env env, size_t i) {
    const std::shared_ptr<Tensor>& tensor = outputs_[i];
    if (fetches_[i] == Fetch::kInPlace) return env.Undefined();
    if (fetches_[i] == Fetch::kHandle) return Value::wrap(env, tensor);
    Napi::Object object = Napi::Object::New(env);
    object.Set("type", static_cast<int>(tensor->type()));
    object.Set("dims", write_dims(env, tensor->dims()));
    if (tensor->type() == ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING) {
      object.Set("data", read_strings(env, *tensor));
    } else {
      object.Set("data", array_buffer_over(env, tensor, Addon::of(env).copy_outputs));
    }
    return object;
  }

  Napi::Value finish(Napi::Env env) override {
    Napi::Array results = Napi::Array::New(env, outputs_.size());
    for (uint32_t i = 0; i < outputs_.size(); ++i) results.Set(i, result(env, i));
    results.Set("milliseconds", milliseconds_);
    return results;
  }

  std::shared_ptr<LoadedSession> session_;
  std::shared_ptr<OrtRunOptions> options_;
  Napi::ObjectReference pins_;
  std::vector<const char*> input_names_;
  std::vector<const char*> output_names_;
  std::vector<std::shared_ptr<Tensor>> inputs_;
  std::vector<std::shared_ptr<Tensor>> outputs_;
  std::vector<Fetch> fetches_;
  double milliseconds_ = 0;
};

using CountFunction = OrtStatus* (*)(const OrtSession*, size_t*);
using NameFunction = OrtStatus* (*)(const OrtSession*, size_t, OrtAllocator*, char**);
using TypeFunction = OrtStatus* (*)(const OrtSession*, size_t, OrtTypeInfo**);

std::vector<std::string> read_names(const OrtSession* session, CountFunction count,
                                    NameFunction name) {
  size_t n = 0;
  check(count(session, &n));
  std::vector<std::string> names(n);
  for (size_t i = 0; i < n; ++i) {
    char* text = nullptr;
    check(name(session, i, default_allocator(), &text));
    names[i] = take_string(text);
  }
  return names;
}

// Sizes as numbers, symbolic dimensions by name ('' when they have none).
Napi::Array describe_shape(Napi::Env env, const OrtTensorTypeAndShapeInfo* info) {
  size_t rank = 0;
  check(ort().GetDimensionsCount(info, &rank));
  std::vector<int64_t> dims(rank);
  std::vector<const char*> symbols(rank);
  check(ort().GetDimensions(info, dims.data(), rank));
  check(ort().GetSymbolicDimensions(info, symbols.data(), rank));
  Napi::Array shape = Napi::Array::New(env, rank);
  for (uint32_t i = 0; i < rank; ++i) {
    if (dims[i] >= 0) {
      shape.Set(i, static_cast<double>(dims[i]));
    } else {
      shape.Set(i, symbols[i]);
    }
  }
  return shape;
}

Napi::Array describe_values(Napi::Env env, const OrtSession* session,
                            const std::vector<std::string>& names, TypeFunction type_info) {
  Napi::Array values = Napi::Array::New(env, names.size());
  for (uint32_t i = 0; i < names.size(); ++i) {
    OrtTypeInfo* raw = nullptr;
    check(type_info(session, i, &raw));
    const auto info = own(raw);
    const OrtTensorTypeAndShapeInfo* tensor = nullptr;
    check(ort().CastTypeInfoToTensorInfo(info.get(), &tensor));
    Napi::Object value = Napi::Object::New(env);
    value.Set("name", names[i]);
    if (tensor != nullptr) {
      ONNXTensorElementDataType type;
      check(ort().GetTensorElementType(tensor, &type));
      value.Set("type", static_cast<int>(type));
      value.Set("shape", describe_shape(env, tensor));
    }
    values.Set(i, value);
  }
  return values;
}

}  // namespace

LoadedSession::LoadedSession(std::shared_ptr<Environment> environment, OrtSession* session,
                             int device)
    : environment_(std::move(environment)),
      session_(own(session)),
      device_(device),
      inputs_(read_names(session, ort().SessionGetInputCount, ort().SessionGetInputName)),
      outputs_(read_names(session, ort().SessionGetOutputCount, ort().SessionGetOutputName)) {
  if (device == kHost) return;
  OrtMemoryInfo* memory = nullptr;
  check(
      ort().CreateMemoryInfo(kCudaMemory, OrtDeviceAllocator, device, OrtMemTypeDefault, &memory));
  memory_ = own(memory);
  OrtAllocator* allocator = nullptr;
  check(ort().CreateAllocator(session, memory, &allocator));
  allocator_ = own(allocator);
}

std::shared_ptr<Tensor> LoadedSession::allocate(ONNXTensorElementDataType type,
                                                const std::vector<int64_t>& dims) {
  if (device_ == kHost) return std::make_shared<Tensor>(environment_, type, dims);
  tensor_bytes(type, dims);  // refuses what cannot be allocated
  OrtValue* value = nullptr;
  check(ort().CreateTensorAsOrtValue(allocator_.get(), dims.data(), dims.size(), type, &value));
  auto tensor = std::make_shared<Tensor>(environment_, value, shared_from_this());
  cuda::zero(device_, tensor->data(), tensor->bytes());
  return tensor;
}

Napi::Function Session::define(Napi::Env env) {
  return DefineClass(
      env, "Session",
      {InstanceAccessor<&Session::get_inputs>("inputs"),
       InstanceAccessor<&Session::get_outputs>("outputs"),
       InstanceAccessor<&Session::get_metadata>("metadata"), InstanceMethod<&Session::run>("run"),
       InstanceMethod<&Session::allocate>("allocate"),
       InstanceMethod<&Session::end_profiling>("endProfiling"),
       InstanceMethod<&Session::dispose>("dispose")});
}

Napi::Value Session::create(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return Task::start(
        std::make_unique<CreateTask>(info.Env(), info[0], info[1].As<Napi::Object>()));
  });
}

Session::Session(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Session>(info) {
  session_ = *info[0].As<Napi::External<std::shared_ptr<LoadedSession>>>().Data();
}

LoadedSession& Session::loaded() const {
  if (session_ == nullptr) throw OrtFailure(ORT_FAIL, "the session was disposed");
  return *session_;
}

Napi::Value Session::get_inputs(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return describe_values(info.Env(), loaded().get(), loaded().inputs(),
                           ort().SessionGetInputTypeInfo);
  });
}

Napi::Value Session::get_outputs(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    return describe_values(info.Env(), loaded().get(), loaded().outputs(),
                           ort().SessionGetOutputTypeInfo);
  });
}

Napi::Value Session::get_metadata(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    OrtModelMetadata* raw = nullptr;
    check(ort().SessionGetModelMetadata(loaded().get(), &raw));
    const auto metadata = own(raw);
    char** keys = nullptr;
    int64_t count = 0;
    OrtAllocator* allocator = default_allocator();
    check(ort().ModelMetadataGetCustomMetadataMapKeys(raw, allocator, &keys, &count));
    Napi::Object result = Napi::Object::New(info.Env());
    for (int64_t i = 0; i < count; ++i) {
      const std::string key = take_string(keys[i]);
      char* value = nullptr;
      check(ort().ModelMetadataLookupCustomMetadataMap(raw, allocator, key.c_str(), &value));
      if (value != nullptr) result.Set(key, take_string(value));
    }
    if (keys != nullptr) allocator->Free(allocator, keys);
    return result;
  });
}

// run(inputIndices, inputs, outputIndices, fetches, runOptions?, here?) -> promise of one entry per
// output, and `milliseconds`; it is settled already when it is to run here. An input is a Value or
// { type, dims, data: Uint8Array | string[] }. A fetch is undefined
// (-> { type, dims, data }), true (-> Value), or a Value or { type, dims, data } that is written in
// place (-> undefined).
Napi::Value Session::run(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    loaded();
    const Napi::Array input_indices = info[0].As<Napi::Array>(), inputs = info[1].As<Napi::Array>();
    const Napi::Array output_indices = info[2].As<Napi::Array>(),
                      fetches = info[3].As<Napi::Array>();
    auto task = std::make_unique<RunTask>(info.Env(), session_, RunOptions::unwrap(info[4]), inputs,
                                          fetches);
    for (uint32_t i = 0; i < inputs.Length(); ++i) {
      task->feed(input_indices.Get(i).As<Napi::Number>().Uint32Value(), inputs.Get(i));
    }
    for (uint32_t i = 0; i < fetches.Length(); ++i) {
      task->fetch(output_indices.Get(i).As<Napi::Number>().Uint32Value(), fetches.Get(i));
    }
    const bool here = info[5].IsBoolean() && info[5].As<Napi::Boolean>();
    return here ? Task::run_here(std::move(task)) : Task::start(std::move(task));
  });
}

// allocate(type, dims) -> a Value with zeros where the session computes.
Napi::Value Session::allocate(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto type =
        static_cast<ONNXTensorElementDataType>(info[0].As<Napi::Number>().Int32Value());
    return Value::wrap(info.Env(), loaded().allocate(type, read_dims(info[1])));
  });
}

Napi::Value Session::end_profiling(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    char* path = nullptr;
    check(ort().SessionEndProfiling(loaded().get(), default_allocator(), &path));
    return Napi::String::New(info.Env(), take_string(path));
  });
}

void Session::dispose(const Napi::CallbackInfo&) { session_.reset(); }

}  // namespace fla
