// Generated from ops/window_attention/schema.ts by `npm run gen`. Do not edit.
// clang-format off
#ifndef FLA_OPS_GEN_WINDOW_ATTENTION_H_
#define FLA_OPS_GEN_WINDOW_ATTENTION_H_

#include "ops/register/op_table.h"

namespace fla::gen::window_attention {

enum Input : int { kQuery, kKey, kValue, kMask, kAlibiSlopes, kDistanceBias, kPastWindow };
enum Output : int { kOutput, kLse, kPresentWindow };
enum Attribute : int { kAttributeQNumHeads, kAttributeKvNumHeads, kAttributeWindow, kAttributeSinks, kAttributeScale, kAttributeSoftcap };
enum Dim : int { kDimHQ, kDimHV, kDimB, kDimT, kDimK, kDimV, kDimWindow, kDimSinks };
enum Type : int { kTypeT, kTypeR, kTypeM, kTypeW, kTypeL };

inline constexpr TypeChoice type_T[] = {
    {-1, DType::kFloat32},
    {-1, DType::kFloat16},
    {-1, DType::kBFloat16}};
inline constexpr TypeChoice type_R[] = {
    {kTypeT, {}},
    {-1, DType::kFloat32}};
inline constexpr TypeChoice type_M[] = {
    {-1, DType::kBool},
    {-1, DType::kFloat32}};
inline constexpr TypeChoice type_W[] = {
    {kTypeT, {}},
    {-1, DType::kFloat32}};
inline constexpr TypeChoice type_L[] = {
    {-1, DType::kFloat32}};
inline constexpr TypeTable types[] = {
    {"T", {type_T, 3}},
    {"R", {type_R, 2}},
    {"M", {type_M, 2}},
    {"W", {type_W, 2}},
    {"L", {type_L, 1}}};
inline constexpr TypeCombination combinations[] = {
    {{DType::kFloat32, DType::kFloat32, DType::kBool, DType::kFloat32, DType::kFloat32}},
    {{DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat16, DType::kBool, DType::kFloat16, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat16, DType::kBool, DType::kFloat32, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat16, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat32, DType::kBool, DType::kFloat16, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat32, DType::kBool, DType::kFloat32, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat16, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat32}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kBool, DType::kBFloat16, DType::kFloat32}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kBool, DType::kFloat32, DType::kFloat32}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kFloat32, DType::kBFloat16, DType::kFloat32}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32}},
    {{DType::kBFloat16, DType::kFloat32, DType::kBool, DType::kBFloat16, DType::kFloat32}},
    {{DType::kBFloat16, DType::kFloat32, DType::kBool, DType::kFloat32, DType::kFloat32}},
    {{DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kBFloat16, DType::kFloat32}},
    {{DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat32}}};
inline constexpr const char* dim_names[] = {"HQ", "HV", "B", "T", "K", "V", "window", "sinks"};
inline constexpr int positive[] = {kDimK, kDimV};
inline constexpr AliasTable aliases[] = {
    {kDimHQ, kAttributeQNumHeads},
    {kDimHV, kAttributeKvNumHeads},
    {kDimWindow, kAttributeWindow},
    {kDimSinks, kAttributeSinks}};
inline constexpr AttributeTable attributes[] = {
    {"q_num_heads", AttributeType::kInt, true, 0, nullptr, {}, true, 1},
    {"kv_num_heads", AttributeType::kInt, true, 0, nullptr, {}, true, 1},
    {"window", AttributeType::kInt, true, 0, nullptr, {}, true, 1},
    {"sinks", AttributeType::kInt, false, 0, nullptr, {}, true, 0},
    {"scale", AttributeType::kFloat, false, 0, nullptr, {}, false, 0},
    {"softcap", AttributeType::kFloat, false, 0, nullptr, {}, false, 0}};
inline constexpr InputTable inputs[] = {
    {"query", kTypeT, false, 1, {
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}, {"HQ*K", {symbol(kDimHQ), symbol(kDimK)}, 0, {}}}}}},
    {"key", kTypeT, false, 1, {
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}, {"HV*K", {symbol(kDimHV), symbol(kDimK)}, 0, {}}}}}},
    {"value", kTypeT, false, 1, {
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}, {"HV*V", {symbol(kDimHV), symbol(kDimV)}, 0, {}}}}}},
    {"mask", kTypeM, true, 1, {
      {2, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}}}}},
    {"alibi_slopes", kTypeW, true, 1, {
      {1, {{"HQ", {symbol(kDimHQ), literal(1)}, 0, {}}}}}},
    {"distance_bias", kTypeW, true, 1, {
      {2, {{"HQ", {symbol(kDimHQ), literal(1)}, 0, {}}, {"window+1", {symbol(kDimWindow), literal(1)}, 1, {{literal(1), 1}}}}}}},
    {"past_window", kTypeR, true, 1, {
      {4, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"HV", {symbol(kDimHV), literal(1)}, 0, {}}, {"sinks+window+1", {symbol(kDimSinks), literal(1)}, 2, {{symbol(kDimWindow), 1}, {literal(1), 1}}}, {"K+V", {symbol(kDimK), literal(1)}, 1, {{symbol(kDimV), 1}}}}}}}};
inline constexpr OutputTable outputs[] = {
    {"output", kTypeT, false, -1,
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}, {"HQ*V", {symbol(kDimHQ), symbol(kDimV)}, 0, {}}}}},
    {"lse", kTypeL, true, -1,
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}, {"HQ", {symbol(kDimHQ), literal(1)}, 0, {}}}}},
    {"present_window", kTypeR, true, kPastWindow,
      {4, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"HV", {symbol(kDimHV), literal(1)}, 0, {}}, {"sinks+window+1", {symbol(kDimSinks), literal(1)}, 2, {{symbol(kDimWindow), 1}, {literal(1), 1}}}, {"K+V", {symbol(kDimK), literal(1)}, 1, {{symbol(kDimV), 1}}}}}}};
inline constexpr ConstraintTable constraints[] = {
    {"query", ConstraintKind::kDivides, {"HV", {symbol(kDimHV), literal(1)}, 0, {}}, {"HQ", {symbol(kDimHQ), literal(1)}, 0, {}}},
    {"value", ConstraintKind::kAtLeast, {"K+V", {symbol(kDimK), literal(1)}, 1, {{symbol(kDimV), 1}}}, {"4", {literal(4), literal(1)}, 0, {}}}};

inline constexpr OpTable kTable = {
    "WindowAttention",
    "com.fla",
    1,
    {types, 5},
    {combinations, 18},
    {dim_names, 8},
    {positive, 2},
    {aliases, 4},
    {},
    {},
    {attributes, 6},
    {inputs, 7},
    {outputs, 3},
    {constraints, 2},
    {},
    {}};

}  // namespace fla::gen::window_attention

#endif  // FLA_OPS_GEN_WINDOW_ATTENTION_H_
