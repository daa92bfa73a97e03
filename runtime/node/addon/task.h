// Work that leaves the event loop free.
#pragma once

#include <napi.h>

#include <memory>
#include <optional>
#include <utility>

#include "addon.h"

namespace fla {

// Work that settles a promise, on a libuv thread or, when it is short, on the caller's. `work` runs
// there; `finish` makes the result on the JavaScript thread.
class Task : public Napi::AsyncWorker {
 public:
  explicit Task(Napi::Env env)
      : Napi::AsyncWorker(env), deferred_(Napi::Promise::Deferred::New(env)) {}

  // Hands the task over to the thread pool.
  static Napi::Promise start(std::unique_ptr<Task> task) {
    const Napi::Promise promise = task->deferred_.Promise();
    task.release()->Queue();
    return promise;
  }

  // Does it here.
  static Napi::Promise run_here(std::unique_ptr<Task> task) {
    task->Execute();
    task->OnOK();
    return task->deferred_.Promise();
  }

 protected:
  virtual void work() = 0;
  virtual Napi::Value finish(Napi::Env env) = 0;

 private:
  void Execute() final {
    try {
      work();
    } catch (const OrtFailure& failure) {
      failure_.emplace(failure);
    } catch (const std::exception& failure) {
      failure_.emplace(ORT_FAIL, failure.what());
    }
  }

  void OnOK() final {
    const Napi::Env env = Env();
    if (failure_) return deferred_.Reject(to_error(env, *failure_).Value());
    try {
      deferred_.Resolve(finish(env));
    } catch (const Napi::Error& error) {
      deferred_.Reject(error.Value());
    } catch (const std::exception& failure) {
      deferred_.Reject(to_error(env, failure).Value());
    }
  }

  Napi::Promise::Deferred deferred_;
  std::optional<OrtFailure> failure_;
};

}  // namespace fla
