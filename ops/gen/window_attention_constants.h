// Generated from ops/window_attention/schema.ts by `npm run gen`. Do not edit.
// clang-format off
#ifndef FLA_OPS_GEN_WINDOW_ATTENTION_CONSTANTS_H_
#define FLA_OPS_GEN_WINDOW_ATTENTION_CONSTANTS_H_

namespace fla::gen::window_attention {

constexpr float kCountBase = 256.0f;  // Base of the digits in which tokens are counted.

}  // namespace fla::gen::window_attention

#endif  // FLA_OPS_GEN_WINDOW_ATTENTION_CONSTANTS_H_
