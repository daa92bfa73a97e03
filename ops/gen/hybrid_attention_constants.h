// Generated from ops/hybrid_attention/schema.ts by `npm run gen`. Do not edit.
// clang-format off
#ifndef FLA_OPS_GEN_HYBRID_ATTENTION_CONSTANTS_H_
#define FLA_OPS_GEN_HYBRID_ATTENTION_CONSTANTS_H_

namespace fla::gen::hybrid_attention {

constexpr float kExpClamp = 40.0f;  // Largest argument of the exp feature map.
constexpr float kCountBase = 256.0f;  // Base of the digits in which tokens are counted.

}  // namespace fla::gen::hybrid_attention

#endif  // FLA_OPS_GEN_HYBRID_ATTENTION_CONSTANTS_H_
