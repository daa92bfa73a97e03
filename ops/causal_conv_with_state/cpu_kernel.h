// CausalConvWithState, the kernel proper. Compiled once per ISA by cpu_{portable,avx2,avx512}.cc.
//
//   x = [past_state | input]      output[t] = act(bias + sum_j weight[j] x[t + j])
//
// One work item = a block of channels of one batch entry. Long rows are vectorised over time, one
// channel and one segment after another; short ones (decode) are converted, convolved and activated
// as one block, because the rows of a channel block are contiguous.
#ifndef FLA_OPS_CAUSAL_CONV_WITH_STATE_CPU_KERNEL_H_
#define FLA_OPS_CAUSAL_CONV_WITH_STATE_CPU_KERNEL_H_

#include "ops/causal_conv_with_state/cpu.h"
#include "ops/common/scratch.h"
#include "ops/common/vec.h"

namespace fla {
namespace {

constexpr int64_t kSegment = 512;      // outputs per step of a long row
constexpr int64_t kShort = 16;         // rows shorter than this are handled as a block
constexpr int64_t kChannelBlock = 64;  // channels per work item
constexpr int64_t kParallelWork = 100000;

struct Plan {
  CausalConvWithStateParams p;
  int64_t blocks;  // per batch entry
  int64_t x_size;  // floats of the input buffer, history included
  int64_t y_size;  // floats of the output buffer
  bool failed;
};

struct Work {
  float* x;        // history and inputs, float32
  float* y;        // outputs, float32
  float* weights;  // [channels of the block][kernel]
  float* bias;     // [channels of the block]
};

FLA_INLINE Vec activate(Vec x, bool silu) { return silu ? x / (1.0f + vexp(-x)) : x; }

// x[0..kernel-1) = the history before the row's first input.
inline void load_history(const CausalConvWithStateParams& p, int64_t row, float* x) {
  const int64_t keep = p.kernel - 1;
  if (p.past_state)
    load_row(x, p.past_state, row * keep, keep, p.io);
  else
    memset(x, 0, keep * sizeof(float));
}

inline void store_history(const CausalConvWithStateParams& p, int64_t row, const float* x) {
  const int64_t keep = p.kernel - 1;
  if (p.present_state) store_row(p.present_state, row * keep, x, keep, p.io);
}

// One channel of any length, vectorised over time.
inline void long_row(const CausalConvWithStateParams& p, int64_t row, const float* weight,
                     float bias, const Work& w) {
  const int64_t keep = p.kernel - 1;
  load_history(p, row, w.x);
  for (int64_t t = 0; t < p.T; t += kSegment) {
    const int64_t n = p.T - t < kSegment ? p.T - t : kSegment;
    load_row(w.x + keep, p.input, row * p.T + t, n, p.io);
    for (int64_t i = n; i < round_up(n, VL); i++) w.x[keep + i] = 0.0f;
    for (int64_t i = 0; i < n; i += VL) {
      Vec acc = splat(bias);
      for (int64_t j = 0; j < p.kernel; j++) acc += weight[j] * load(w.x + i + j);
      store(w.y + i, activate(acc, p.silu));
    }
    store_row(p.output, row * p.T + t, w.y, n, p.io);
    memmove(w.x, w.x + n, keep * sizeof(float));
  }
  store_history(p, row, w.x);
}

// `channels` short rows from `row` on.
inline void short_rows(const CausalConvWithStateParams& p, int64_t row, int64_t channels,
                       const Work& w) {
  const int64_t keep = p.kernel - 1, pitch = keep + p.T;
  for (int64_t c = 0; c < channels; c++) {
    float* x = w.x + c * pitch;
    load_history(p, row + c, x);
    load_row(x + keep, p.input, (row + c) * p.T, p.T, p.io);
    for (int64_t t = 0; t < p.T; t++) {
      float acc = w.bias[c];
      for (int64_t j = 0; j < p.kernel; j++) acc += w.weights[c * p.kernel + j] * x[t + j];
      w.y[c * p.T + t] = acc;
    }
    store_history(p, row + c, x + p.T);
  }
  if (p.silu)
    for (int64_t i = 0; i < channels * p.T; i += VL) store(w.y + i, activate(load(w.y + i), true));
  store_row(p.output, row * p.T, w.y, channels * p.T, p.io);
}

inline void run_item(void* arg, int64_t index) {
  Plan& s = *static_cast<Plan*>(arg);
  const auto& p = s.p;
  const int64_t b = index / s.blocks, c0 = index % s.blocks * kChannelBlock;
  const int64_t channels = p.C - c0 < kChannelBlock ? p.C - c0 : kChannelBlock;
  const int64_t floats = s.x_size + s.y_size + kChannelBlock * (p.kernel + 1);
  float* memory = static_cast<float*>(scratch_acquire(floats * sizeof(float)));
  if (!memory) {
    __atomic_store_n(&s.failed, true, __ATOMIC_RELAXED);
    return;
  }
  const Work w{memory, memory + s.x_size, memory + s.x_size + s.y_size,
               memory + s.x_size + s.y_size + kChannelBlock * p.kernel};
  load_row(w.weights, p.weight, c0 * p.kernel, channels * p.kernel, p.io);
  if (p.bias)
    load_row(w.bias, p.bias, c0, channels, p.io);
  else
    memset(w.bias, 0, channels * sizeof(float));
  const int64_t row = b * p.C + c0;
  if (p.T < kShort)
    short_rows(p, row, channels, w);
  else
    for (int64_t c = 0; c < channels; c++)
      long_row(p, row + c, w.weights + c * p.kernel, w.bias[c], w);
  scratch_release(memory);
}

inline bool run(const CausalConvWithStateParams& p, const Parallel& parallel) {
  Plan s{p, (p.C + kChannelBlock - 1) / kChannelBlock, 0, 0, false};
  s.x_size =
      round_up(p.T < kShort ? kChannelBlock * (p.kernel - 1 + p.T) : p.kernel - 1 + kSegment, 16) +
      16;
  s.y_size = p.T < kShort ? round_up(kChannelBlock * p.T, 16) + 16 : kSegment;
  const int64_t items = p.B * s.blocks;
  if (!parallel.run || parallel.threads <= 1 || items <= 1 ||
      p.B * p.C * p.T * p.kernel < kParallelWork)
    for (int64_t i = 0; i < items; i++) run_item(&s, i);
  else
    parallel.run(parallel.ctx, items, run_item, &s);
  return !s.failed;
}

}  // namespace
}  // namespace fla

#endif  // FLA_OPS_CAUSAL_CONV_WITH_STATE_CPU_KERNEL_H_
