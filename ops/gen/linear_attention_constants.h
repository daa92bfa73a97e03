// Generated from ops/linear_attention/schema.ts by `npm run gen`. Do not edit.
// clang-format off
#ifndef FLA_OPS_GEN_LINEAR_ATTENTION_CONSTANTS_H_
#define FLA_OPS_GEN_LINEAR_ATTENTION_CONSTANTS_H_

namespace fla::gen::linear_attention {

constexpr float kNormalizeEps = 0.000001f;  // Added to the denominator when normalize=1.
constexpr float kL2normEps = 0.000001f;  // Added to the sum of squares before the square root.
constexpr float kExpClamp = 80.0f;  // Largest argument of the exp feature map.

}  // namespace fla::gen::linear_attention

#endif  // FLA_OPS_GEN_LINEAR_ATTENTION_CONSTANTS_H_
