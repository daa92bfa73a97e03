// A small dynamic thread pool standing in for the host's.
#ifndef FLA_TEST_NATIVE_POOL_H_
#define FLA_TEST_NATIVE_POOL_H_

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "ops/common/cpu.h"

class Pool {
 public:
  explicit Pool(int threads) : threads_(threads) {
    for (int i = 1; i < threads; i++) workers_.emplace_back([this] { work(); });
  }
  ~Pool() {
    stop_ = true;
    generation_.fetch_add(1);
    for (auto& w : workers_) w.join();
  }
  fla::Parallel parallel() { return {threads_, run, this}; }

 private:
  static void run(void* ctx, int64_t total, void (*fn)(void*, int64_t), void* arg) {
    auto& p = *static_cast<Pool*>(ctx);
    p.fn_ = fn;
    p.arg_ = arg;
    p.total_ = total;
    p.next_ = 0;
    p.busy_ = static_cast<int>(p.workers_.size());
    p.generation_.fetch_add(1, std::memory_order_release);
    p.drain();
    while (p.busy_.load(std::memory_order_acquire) > 0) std::this_thread::yield();
  }
  void drain() {
    for (int64_t i; (i = next_.fetch_add(1)) < total_;) fn_(arg_, i);
  }
  void work() {
    for (int seen = 0;;) {
      for (int spin = 0; generation_.load(std::memory_order_acquire) == seen; spin++)
        if (spin > 20000) std::this_thread::yield();
      seen = generation_.load();
      if (stop_) return;
      drain();
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  int threads_;
  std::vector<std::thread> workers_;
  std::atomic<int> generation_{0}, busy_{0};
  std::atomic<bool> stop_{false};
  std::atomic<int64_t> next_{0};
  int64_t total_ = 0;
  void (*fn_)(void*, int64_t) = nullptr;
  void* arg_ = nullptr;
};

#endif  // FLA_TEST_NATIVE_POOL_H_
