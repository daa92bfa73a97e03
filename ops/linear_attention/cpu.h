// LinearAttention on the CPU: parameters and launcher. Semantics: schema.ts and README.md beside
// this file.
#ifndef FLA_OPS_LINEAR_ATTENTION_CPU_H_
#define FLA_OPS_LINEAR_ATTENTION_CPU_H_

#include <cstdint>

#include "ops/common/cpu.h"

namespace fla {

enum class UpdateRule : int { kLinear, kGated, kDelta, kGatedDelta };
enum class FeatureMap : int { kIdentity, kElu1, kRelu, kExp, kSilu, kL2Norm, kSoftmax };
// kAfter: o_t reads S_t. kBefore: o_t reads S_{t-1}, before this token's decay and update.
// kBonus: as kBefore plus the current token through the bonus u: o_t = scale * q'(S_{t-1} + diag(u)
// k v').
enum class ReadMode : int { kAfter, kBefore, kBonus };
enum class DecayKind : int { kNone, kPerHead, kPerKey };
enum class BetaKind : int { kNone, kPerHead, kShared };

// One call. Every tensor is contiguous; the caller has checked shapes and dtypes.
struct LinearAttentionParams {
  int64_t B = 0;   // batch
  int64_t T = 0;   // tokens, may be 0
  int64_t Hq = 0;  // query heads
  int64_t Hk = 0;  // key heads; divides HV
  int64_t HV = 0;  // value heads = states; HV divides Hq or Hq divides HV
  int64_t K = 0;   // key head size dk
  int64_t V = 0;   // value head size dv, without the normaliser's column

  UpdateRule rule = UpdateRule::kLinear;
  FeatureMap feature_map = FeatureMap::kIdentity;
  ReadMode read = ReadMode::kAfter;
  bool causal = true;      // false: every token reads the state after all T tokens
  bool normalize = false;  // o = scale q'S / (scale q'z + 1e-6); the state gains z as column V
  bool qk_l2norm = false;  // after the feature map: x / sqrt(sum x^2 + 1e-6)
  float scale = 0;         // 0 means 1/sqrt(K)
  int64_t chunk_size = 0;  // a hint; the kernel picks its own

  DType io = DType::kFloat32;     // query key value output
  DType state = DType::kFloat32;  // past_state present_state: kFloat32 or io

  DecayKind decay_kind = DecayKind::kNone;  // used by kGated and kGatedDelta only
  DType decay_dtype = DType::kFloat32;      // kFloat32 or io
  BetaKind beta_kind = BetaKind::kNone;     // used by kDelta and kGatedDelta; kNone means 1
  DType beta_dtype = DType::kFloat32;       // kFloat32 or io
  DType mask_dtype = DType::kBool;          // kBool (1 byte), kFloat32 or io
  DType bonus_dtype = DType::kFloat32;      // kFloat32 or io

  const void* query = nullptr;  // [B, T, Hq*K]
  const void* key = nullptr;    // [B, T, Hk*K]
  const void* value = nullptr;  // [B, T, HV*V]
  const void* past_state =
      nullptr;  // [B, HV, K, V + normalize]; null means zeros; may equal present_state
  const void* decay = nullptr;  // log decay <= 0: [B, T, HV] or [B, T, HV*K]
  const void* beta = nullptr;   // [B, T, HV] or [B, T, 1]
  const void* mask = nullptr;   // [B, T], 0 hides a token; null means all visible
  const void* bonus = nullptr;  // [HV*K], read == kBonus only

  void* output = nullptr;  // [B, T, max(Hq, HV)*V], every element written
  void* present_state =
      nullptr;  // [B, HV, K, V + normalize]; null when the caller has no use for it
};

// Runs the op. Accumulates in float32. Does not throw; returns false only when memory ran out
// (a few hundred KB per thread, kept for the next call).
bool linear_attention_cpu(const LinearAttentionParams& params, const Parallel& parallel);

}  // namespace fla

#endif  // FLA_OPS_LINEAR_ATTENTION_CPU_H_
