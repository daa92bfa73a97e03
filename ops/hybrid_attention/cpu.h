// HybridAttention on the CPU: parameters and launcher. Semantics: schema.ts and README.md beside
// this file.
#ifndef FLA_OPS_HYBRID_ATTENTION_CPU_H_
#define FLA_OPS_HYBRID_ATTENTION_CPU_H_

#include <cstdint>

#include "ops/common/cpu.h"
#include "ops/window_attention/cpu.h"

namespace fla {

enum class HybridMap : int { kIdentity, kElu1, kRelu, kExp, kSoftmax };

// One call: what WindowAttention has, and the far part. F = M*signs, rows of the window are
// sinks+window+cache+1 of K+V+E elements. Every tensor is contiguous; the caller has checked shapes
// and dtypes.
struct HybridAttentionParams : WindowAttentionParams {
  int64_t D = 0;      // size of the vectors that features are made of; K without features
  int64_t E = 0;      // D when key_features are given, else 0
  int64_t M = 0;      // columns of the weights; D without weights
  int64_t signs = 2;  // 1 or 2
  int64_t cache = 0;  // tokens that are kept exactly because the state recalls them badly
  HybridMap map = HybridMap::kExp;

  const void* query_features = nullptr;  // [B, T, HQ*D]; null means query
  const void* key_features = nullptr;    // [B, T, HV*D]; null means key
  const void* query_weight = nullptr;    // [HQ, D, M]; null means the identity
  const void* key_weight = nullptr;      // [HV, D, M]
  const void* query_bias = nullptr;      // [HQ, F]
  const void* key_bias = nullptr;        // [HV, F]
  const void* alpha = nullptr;           // [HQ]
  const void* key_mean = nullptr;        // [HV, K]
  const void* decay = nullptr;           // [HV], natural log, <= 0; not with a cache
  const float* past_state = nullptr;  // [B, HV, F, V+1]; null means zeros; may equal present_state

  float* present_state = nullptr;  // [B, HV, F, V+1]; null when the caller has no use for it
};

// Runs the op. Accumulates in float32. Does not throw; returns false only when memory ran out.
// Work memory does not depend on T.
bool hybrid_attention_cpu(const HybridAttentionParams& params, const Parallel& parallel);

}  // namespace fla

#endif  // FLA_OPS_HYBRID_ATTENTION_CPU_H_
