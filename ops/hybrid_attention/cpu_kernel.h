// HybridAttention and WindowAttention, which is HybridAttention without its far part. Compiled once
// per ISA and op by cpu_{portable,avx2,avx512}.cc.
//
// One work item = some neighbouring key heads of one batch row with all of their query heads, or
// one with some of them. Long calls go in tiles (cpu_tiles.h), short ones and those with a cache
// token by token (cpu_tokens.h).
//
// Papers: Zhang et al. 2024 (LoLCATs, arXiv:2410.10254; Hedgehog, arXiv:2402.04347); Xiao et al.
// 2023 (sinks, arXiv:2309.17453); McDermott et al. 2025 (LoLA, arXiv:2505.23666).
#ifndef FLA_OPS_HYBRID_ATTENTION_CPU_KERNEL_H_
#define FLA_OPS_HYBRID_ATTENTION_CPU_KERNEL_H_

#include "ops/hybrid_attention/cpu_plan.h"
#include "ops/hybrid_attention/cpu_tiles.h"
#include "ops/hybrid_attention/cpu_tokens.h"

namespace fla {
namespace {

constexpr int64_t kFewTokens = 8;  // calls shorter than this go token by token
// Below this many multiply-adds waking another thread costs more than it saves.
constexpr int64_t kParallelWork = 100000;
constexpr int64_t kGroupBytes = 768
                                << 10;  // what the heads of a group keep should fit the L2 cache

inline Plan make_plan(const HybridAttentionParams& p, bool far, int threads) {
  Plan s;
  s.p = p;
  if (p.scale == 0.0f) s.p.scale = 1.0f / __builtin_sqrtf(static_cast<float>(p.K));
  s.far = far;
  s.rows = p.sinks + p.window + p.cache + 1;
  s.width = p.K + p.V + p.E;
  s.F = p.M * p.signs;
  s.kp = round_up(p.K, 16);
  s.vp = round_up(p.V, 16);
  s.dp = round_up(p.D, 16);
  s.mp = round_up(p.M, 16);
  s.fs = round_up(s.F, 16) + 16;
  s.tiles = (p.window + 2 * C - 2) / C;
  s.sinks_p = round_up(p.sinks, C);
  s.heads = static_cast<int>(p.HQ / p.HV);
  s.direct = p.T < kFewTokens || p.cache > 0;
  s.failed = false;
  const int64_t states = lmax(1, p.B * p.HV);
  // The query heads of a key head are shared out only when there are too few to keep threads busy.
  const int64_t wanted = s.direct ? 1 : imin((threads + states - 1) / states, s.heads);
  s.per_item = static_cast<int>((s.heads + wanted - 1) / wanted);
  s.parts = (s.heads + s.per_item - 1) / s.per_item;
  s.group = 1;
  if (s.parts == 1 && !s.direct) {
    HeadWork head;
    const int64_t fit = lmax(1, kGroupBytes / static_cast<int64_t>(carve_head(s, nullptr, &head)));
    // Two groups per thread for balance.
    const int64_t fair = threads == 1 ? p.HV : lmax(1, states / (2 * threads));
    s.group = imin(imin(fair, fit), p.HV);
  }
  s.groups = static_cast<int>((p.HV + s.group - 1) / s.group);
  TileWork tiles;
  TokenWork tokens;
  s.bytes = s.direct ? carve_tokens(s, nullptr, &tokens) : carve_tiles(s, nullptr, &tiles);
  return s;
}

inline Item item_at(const Plan& s, int64_t b, int64_t g, int64_t part) {
  Item it;
  it.b = b;
  it.g = g;
  it.h0 = g * s.heads + part * s.per_item;
  it.nq = imin(s.per_item, s.heads - part * s.per_item);
  it.first = part == 0;
  it.n0 = 0;
  if (s.p.past_window)
    it.n0 = read_count(s.p.past_window, window_offset(s, it) + (s.rows - 1) * s.width, s.p.ring);
  return it;
}

inline void run_direct(const Plan& s, const Item& it, const TokenWork& w) {
  switch (s.p.ring) {
    case DType::kFloat16:
      return Tokens<Half>(s, it, w).run();
    case DType::kBFloat16:
      return Tokens<BFloat>(s, it, w).run();
    default:
      return Tokens<float>(s, it, w).run();
  }
}

inline void run_item(void* arg, int64_t index) {
  Plan& s = *static_cast<Plan*>(arg);
  char* memory = static_cast<char*>(scratch_acquire(s.bytes));
  if (!memory) {
    __atomic_store_n(&s.failed, true, __ATOMIC_RELAXED);
    return;
  }
  const int64_t part = index % s.parts, turn = index / s.parts;
  const int64_t b = turn / s.groups, g0 = turn % s.groups * s.group;
  const int heads = imin(s.group, s.p.HV - g0);
  if (s.direct) {
    TokenWork w;
    carve_tokens(s, memory, &w);
    for (int i = 0; i < heads; i++) run_direct(s, item_at(s, b, g0 + i, part), w);
  } else {
    TileWork w;
    carve_tiles(s, memory, &w);
    for (int i = 0; i < heads; i++) w.heads[i].it = item_at(s, b, g0 + i, part);
    run_tiles(s, w, heads);
  }
  scratch_release(memory);
}

// Several items read the same past states, and one of them writes the present ones: where those
// are the same memory, the items read a copy.
inline void* copy_past(Plan& s) {
  const auto& p = s.p;
  const bool window = p.past_window && p.past_window == p.present_window;
  const bool state = p.past_state && p.past_state == p.present_state;
  if (s.parts == 1 || (!window && !state)) return nullptr;
  const int64_t heads = p.B * p.HV;
  const int64_t window_bytes = round_up(heads * s.rows * s.width * size_of(p.ring), 64);
  const int64_t state_bytes = heads * s.F * (p.V + 1) * 4;
  char* copy = static_cast<char*>(scratch_acquire(window_bytes + (state ? state_bytes : 0)));
  if (!copy) {
    s.failed = true;
    return nullptr;
  }
  if (window) memcpy(copy, p.past_window, heads * s.rows * s.width * size_of(p.ring));
  if (window) s.p.past_window = copy;
  if (state) memcpy(copy + window_bytes, p.past_state, state_bytes);
  if (state) s.p.past_state = reinterpret_cast<const float*>(copy + window_bytes);
  return copy;
}

inline bool run(const HybridAttentionParams& p, bool far, const Parallel& parallel) {
  const int64_t work = p.B * p.HQ * p.T * (p.window * (p.K + p.V) + p.M * p.signs * p.V);
  const bool alone = !parallel.run || parallel.threads <= 1 || work < kParallelWork;
  Plan s = make_plan(p, far, alone ? 1 : parallel.threads);
  void* copy = copy_past(s);
  if (s.failed) return false;
  const int64_t items = p.B * s.groups * s.parts;
  if (alone || items == 1)
    for (int64_t i = 0; i < items; i++) run_item(&s, i);
  else
    parallel.run(parallel.ctx, items, run_item, &s);
  if (copy) scratch_release(copy);
  return !s.failed;
}

}  // namespace
}  // namespace fla

#endif  // FLA_OPS_HYBRID_ATTENTION_CPU_KERNEL_H_
