// WindowAttention on the CPU: parameters and launcher. Semantics: schema.ts and README.md beside
// this file.
#ifndef FLA_OPS_WINDOW_ATTENTION_CPU_H_
#define FLA_OPS_WINDOW_ATTENTION_CPU_H_

#include <cstdint>

#include "ops/common/cpu.h"

namespace fla {

// One call. Every tensor is contiguous; the caller has checked shapes and dtypes.
struct WindowAttentionParams {
  int64_t B = 0;   // batch
  int64_t T = 0;   // tokens, may be 0
  int64_t HQ = 0;  // query heads, a multiple of HV
  int64_t HV = 0;  // key and value heads
  int64_t K = 0;   // key head size
  int64_t V = 0;   // value head size; K + V >= 4

  int64_t window = 1;  // tokens seen, counted back from the query's own
  int64_t sinks = 0;   // first tokens, seen by all
  float scale = 0;     // 0 means 1/sqrt(K)
  float softcap = 0;   // 0 means none

  DType io = DType::kFloat32;         // query key value output
  DType ring = DType::kFloat32;       // past_window present_window: kFloat32 or io
  DType mask_dtype = DType::kBool;    // kBool (1 byte) or kFloat32
  DType parameter = DType::kFloat32;  // of all parameters: kFloat32 or io

  const void* query = nullptr;          // [B, T, HQ*K]
  const void* key = nullptr;            // [B, T, HV*K]
  const void* value = nullptr;          // [B, T, HV*V]
  const void* mask = nullptr;           // [B, T], 0 hides a token; null means all visible
  const void* alibi_slopes = nullptr;   // [HQ]
  const void* distance_bias = nullptr;  // [HQ, window+1]
  const void* past_window =
      nullptr;  // [B, HV, sinks+window+1, K+V]; null means zeros; may equal present_window

  void* output = nullptr;  // [B, T, HQ*V], every element written
  float* lse = nullptr;    // [B, T, HQ]; null when the caller has no use for it
  void* present_window =
      nullptr;  // [B, HV, sinks+window+1, K+V]; null when the caller has no use for it
};

// Runs the op. Accumulates in float32. Does not throw; returns false only when memory ran out.
// Work memory does not depend on T.
bool window_attention_cpu(const WindowAttentionParams& params, const Parallel& parallel);

}  // namespace fla

#endif  // FLA_OPS_WINDOW_ATTENTION_CPU_H_
