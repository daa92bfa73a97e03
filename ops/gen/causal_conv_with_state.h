// Generated from ops/causal_conv_with_state/schema.ts by `npm run gen`. Do not edit.
// clang-format off
#ifndef FLA_OPS_GEN_CAUSAL_CONV_WITH_STATE_H_
#define FLA_OPS_GEN_CAUSAL_CONV_WITH_STATE_H_

#include "ops/register/op_table.h"

namespace fla::gen::causal_conv_with_state {

enum Input : int { kInput, kWeight, kBias, kPastState };
enum Output : int { kOutput, kPresentState };
enum Attribute : int { kAttributeActivation };
enum Dim : int { kDimB, kDimD, kDimT, kDimW };
enum Type : int { kTypeT };
enum Activation : int { kActivationNone, kActivationSilu, kActivationSwish };

inline constexpr TypeChoice type_T[] = {
    {-1, DType::kFloat32},
    {-1, DType::kFloat16},
    {-1, DType::kBFloat16}};
inline constexpr TypeTable types[] = {
    {"T", {type_T, 3}}};
inline constexpr TypeCombination combinations[] = {
    {{DType::kFloat32}},
    {{DType::kFloat16}},
    {{DType::kBFloat16}}};
inline constexpr const char* dim_names[] = {"B", "D", "T", "W"};
inline constexpr int positive[] = {kDimD, kDimW};
inline constexpr const char* allowed_activation[] = {"none", "silu", "swish"};
inline constexpr AttributeTable attributes[] = {
    {"activation", AttributeType::kString, false, 0, "none", {allowed_activation, 3}, false, 0}};
inline constexpr InputTable inputs[] = {
    {"input", kTypeT, false, 1, {
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"D", {symbol(kDimD), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}}}}},
    {"weight", kTypeT, false, 1, {
      {3, {{"D", {symbol(kDimD), literal(1)}, 0, {}}, {"1", {literal(1), literal(1)}, 0, {}}, {"W", {symbol(kDimW), literal(1)}, 0, {}}}}}},
    {"bias", kTypeT, true, 1, {
      {1, {{"D", {symbol(kDimD), literal(1)}, 0, {}}}}}},
    {"past_state", kTypeT, true, 1, {
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"D", {symbol(kDimD), literal(1)}, 0, {}}, {"W-1", {symbol(kDimW), literal(1)}, 1, {{literal(1), -1}}}}}}}};
inline constexpr OutputTable outputs[] = {
    {"output", kTypeT, false, -1,
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"D", {symbol(kDimD), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}}}},
    {"present_state", kTypeT, true, kPastState,
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"D", {symbol(kDimD), literal(1)}, 0, {}}, {"W-1", {symbol(kDimW), literal(1)}, 1, {{literal(1), -1}}}}}}};

inline constexpr OpTable kTable = {
    "CausalConvWithState",
    "com.fla",
    1,
    {types, 1},
    {combinations, 3},
    {dim_names, 4},
    {positive, 2},
    {},
    {},
    {},
    {attributes, 1},
    {inputs, 4},
    {outputs, 2},
    {},
    {},
    {}};

}  // namespace fla::gen::causal_conv_with_state

#endif  // FLA_OPS_GEN_CAUSAL_CONV_WITH_STATE_H_
