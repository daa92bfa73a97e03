// Generated from ops/linear_attention/schema.ts by `npm run gen`. Do not edit.
// clang-format off
#ifndef FLA_OPS_GEN_LINEAR_ATTENTION_H_
#define FLA_OPS_GEN_LINEAR_ATTENTION_H_

#include "ops/register/op_table.h"

namespace fla::gen::linear_attention {

enum Input : int { kQuery, kKey, kValue, kPastState, kDecay, kBeta, kMask, kBonus };
enum Output : int { kOutput, kPresentState };
enum Attribute : int { kAttributeQNumHeads, kAttributeKvNumHeads, kAttributeUpdateRule, kAttributeScale, kAttributeChunkSize, kAttributeFeatureMap, kAttributeNormalize, kAttributeCausal, kAttributeQkL2norm, kAttributeRead };
enum Dim : int { kDimHQ, kDimHV, kDimB, kDimT, kDimK, kDimHK, kDimV, kDimNormalize, kDimHO };
enum Type : int { kTypeT, kTypeS, kTypeTD, kTypeTB, kTypeM, kTypeTU };
enum UpdateRule : int { kUpdateRuleLinear, kUpdateRuleGated, kUpdateRuleDelta, kUpdateRuleGatedDelta };
enum FeatureMap : int { kFeatureMapIdentity, kFeatureMapElu1, kFeatureMapRelu, kFeatureMapExp, kFeatureMapSilu, kFeatureMapL2norm, kFeatureMapSoftmax };
enum Read : int { kReadAfter, kReadBefore, kReadBonus };

inline constexpr TypeChoice type_T[] = {
    {-1, DType::kFloat32},
    {-1, DType::kFloat16},
    {-1, DType::kBFloat16}};
inline constexpr TypeChoice type_S[] = {
    {kTypeT, {}},
    {-1, DType::kFloat32}};
inline constexpr TypeChoice type_TD[] = {
    {kTypeT, {}},
    {-1, DType::kFloat32}};
inline constexpr TypeChoice type_TB[] = {
    {kTypeT, {}},
    {-1, DType::kFloat32}};
inline constexpr TypeChoice type_M[] = {
    {-1, DType::kBool},
    {-1, DType::kFloat32}};
inline constexpr TypeChoice type_TU[] = {
    {kTypeT, {}},
    {-1, DType::kFloat32}};
inline constexpr TypeTable types[] = {
    {"T", {type_T, 3}},
    {"S", {type_S, 2}},
    {"TD", {type_TD, 2}},
    {"TB", {type_TB, 2}},
    {"M", {type_M, 2}},
    {"TU", {type_TU, 2}}};
inline constexpr TypeCombination combinations[] = {
    {{DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kBool, DType::kFloat32}},
    {{DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat16, DType::kFloat16, DType::kFloat16, DType::kBool, DType::kFloat16}},
    {{DType::kFloat16, DType::kFloat16, DType::kFloat16, DType::kFloat16, DType::kBool, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat16, DType::kFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat16}},
    {{DType::kFloat16, DType::kFloat16, DType::kFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat16, DType::kFloat16, DType::kFloat32, DType::kBool, DType::kFloat16}},
    {{DType::kFloat16, DType::kFloat16, DType::kFloat16, DType::kFloat32, DType::kBool, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat16}},
    {{DType::kFloat16, DType::kFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat16, DType::kBool, DType::kFloat16}},
    {{DType::kFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat16, DType::kBool, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat16, DType::kFloat32, DType::kFloat16}},
    {{DType::kFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat16, DType::kFloat32, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat32, DType::kBool, DType::kFloat16}},
    {{DType::kFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat32, DType::kBool, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat16}},
    {{DType::kFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat32, DType::kFloat16, DType::kFloat16, DType::kBool, DType::kFloat16}},
    {{DType::kFloat16, DType::kFloat32, DType::kFloat16, DType::kFloat16, DType::kBool, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat32, DType::kFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat16}},
    {{DType::kFloat16, DType::kFloat32, DType::kFloat16, DType::kFloat16, DType::kFloat32, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat32, DType::kFloat16, DType::kFloat32, DType::kBool, DType::kFloat16}},
    {{DType::kFloat16, DType::kFloat32, DType::kFloat16, DType::kFloat32, DType::kBool, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat32, DType::kFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat16}},
    {{DType::kFloat16, DType::kFloat32, DType::kFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat16, DType::kBool, DType::kFloat16}},
    {{DType::kFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat16, DType::kBool, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat16, DType::kFloat32, DType::kFloat16}},
    {{DType::kFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat16, DType::kFloat32, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kBool, DType::kFloat16}},
    {{DType::kFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kBool, DType::kFloat32}},
    {{DType::kFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat16}},
    {{DType::kFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat32}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kBFloat16, DType::kBFloat16, DType::kBool, DType::kBFloat16}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kBFloat16, DType::kBFloat16, DType::kBool, DType::kFloat32}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kBFloat16, DType::kBFloat16, DType::kFloat32, DType::kBFloat16}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kBFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat32}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kBFloat16, DType::kFloat32, DType::kBool, DType::kBFloat16}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kBFloat16, DType::kFloat32, DType::kBool, DType::kFloat32}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kBFloat16}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kFloat32, DType::kBFloat16, DType::kBool, DType::kBFloat16}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kFloat32, DType::kBFloat16, DType::kBool, DType::kFloat32}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kFloat32, DType::kBFloat16, DType::kFloat32, DType::kBFloat16}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kFloat32, DType::kBFloat16, DType::kFloat32, DType::kFloat32}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kBool, DType::kBFloat16}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kBool, DType::kFloat32}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kBFloat16}},
    {{DType::kBFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat32}},
    {{DType::kBFloat16, DType::kFloat32, DType::kBFloat16, DType::kBFloat16, DType::kBool, DType::kBFloat16}},
    {{DType::kBFloat16, DType::kFloat32, DType::kBFloat16, DType::kBFloat16, DType::kBool, DType::kFloat32}},
    {{DType::kBFloat16, DType::kFloat32, DType::kBFloat16, DType::kBFloat16, DType::kFloat32, DType::kBFloat16}},
    {{DType::kBFloat16, DType::kFloat32, DType::kBFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat32}},
    {{DType::kBFloat16, DType::kFloat32, DType::kBFloat16, DType::kFloat32, DType::kBool, DType::kBFloat16}},
    {{DType::kBFloat16, DType::kFloat32, DType::kBFloat16, DType::kFloat32, DType::kBool, DType::kFloat32}},
    {{DType::kBFloat16, DType::kFloat32, DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kBFloat16}},
    {{DType::kBFloat16, DType::kFloat32, DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32}},
    {{DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kBFloat16, DType::kBool, DType::kBFloat16}},
    {{DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kBFloat16, DType::kBool, DType::kFloat32}},
    {{DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kBFloat16, DType::kFloat32, DType::kBFloat16}},
    {{DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kBFloat16, DType::kFloat32, DType::kFloat32}},
    {{DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kBool, DType::kBFloat16}},
    {{DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kBool, DType::kFloat32}},
    {{DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kBFloat16}},
    {{DType::kBFloat16, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat32}}};
inline constexpr const char* dim_names[] = {"HQ", "HV", "B", "T", "K", "HK", "V", "normalize", "HO"};
inline constexpr int positive[] = {kDimK, kDimV, kDimHK};
inline constexpr AliasTable aliases[] = {
    {kDimHQ, kAttributeQNumHeads},
    {kDimHV, kAttributeKvNumHeads},
    {kDimNormalize, kAttributeNormalize}};
inline constexpr MaximumTable maxima[] = {
    {kDimHO, kDimHQ, kDimHV}};
inline constexpr const char* allowed_update_rule[] = {"linear", "gated", "delta", "gated_delta"};
inline constexpr const char* allowed_feature_map[] = {"identity", "elu1", "relu", "exp", "silu", "l2norm", "softmax"};
inline constexpr const char* allowed_normalize[] = {"0", "1"};
inline constexpr const char* allowed_causal[] = {"0", "1"};
inline constexpr const char* allowed_qk_l2norm[] = {"0", "1"};
inline constexpr const char* allowed_read[] = {"after", "before", "bonus"};
inline constexpr AttributeTable attributes[] = {
    {"q_num_heads", AttributeType::kInt, true, 0, nullptr, {}, true, 1},
    {"kv_num_heads", AttributeType::kInt, true, 0, nullptr, {}, true, 1},
    {"update_rule", AttributeType::kString, false, 0, "gated_delta", {allowed_update_rule, 4}, false, 0},
    {"scale", AttributeType::kFloat, false, 0, nullptr, {}, false, 0},
    {"chunk_size", AttributeType::kInt, false, 64, nullptr, {}, true, 1},
    {"feature_map", AttributeType::kString, false, 0, "identity", {allowed_feature_map, 7}, false, 0},
    {"normalize", AttributeType::kInt, false, 0, nullptr, {allowed_normalize, 2}, false, 0},
    {"causal", AttributeType::kInt, false, 1, nullptr, {allowed_causal, 2}, false, 0},
    {"qk_l2norm", AttributeType::kInt, false, 0, nullptr, {allowed_qk_l2norm, 2}, false, 0},
    {"read", AttributeType::kString, false, 0, "after", {allowed_read, 3}, false, 0}};
inline constexpr InputTable inputs[] = {
    {"query", kTypeT, false, 1, {
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}, {"HQ*K", {symbol(kDimHQ), symbol(kDimK)}, 0, {}}}}}},
    {"key", kTypeT, false, 1, {
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}, {"HK*K", {symbol(kDimHK), symbol(kDimK)}, 0, {}}}}}},
    {"value", kTypeT, false, 1, {
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}, {"HV*V", {symbol(kDimHV), symbol(kDimV)}, 0, {}}}}}},
    {"past_state", kTypeS, true, 1, {
      {4, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"HV", {symbol(kDimHV), literal(1)}, 0, {}}, {"K", {symbol(kDimK), literal(1)}, 0, {}}, {"V+normalize", {symbol(kDimV), literal(1)}, 1, {{symbol(kDimNormalize), 1}}}}}}},
    {"decay", kTypeTD, true, 2, {
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}, {"HV", {symbol(kDimHV), literal(1)}, 0, {}}}},
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}, {"HV*K", {symbol(kDimHV), symbol(kDimK)}, 0, {}}}}}},
    {"beta", kTypeTB, true, 2, {
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}, {"HV", {symbol(kDimHV), literal(1)}, 0, {}}}},
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}, {"1", {literal(1), literal(1)}, 0, {}}}}}},
    {"mask", kTypeM, true, 1, {
      {2, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}}}}},
    {"bonus", kTypeTU, true, 1, {
      {1, {{"HV*K", {symbol(kDimHV), symbol(kDimK)}, 0, {}}}}}}};
inline constexpr OutputTable outputs[] = {
    {"output", kTypeT, false, -1,
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}, {"HO*V", {symbol(kDimHO), symbol(kDimV)}, 0, {}}}}},
    {"present_state", kTypeS, true, kPastState,
      {4, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"HV", {symbol(kDimHV), literal(1)}, 0, {}}, {"K", {symbol(kDimK), literal(1)}, 0, {}}, {"V+normalize", {symbol(kDimV), literal(1)}, 1, {{symbol(kDimNormalize), 1}}}}}}};
inline constexpr ConstraintTable constraints[] = {
    {"query", ConstraintKind::kNested, {"HQ", {symbol(kDimHQ), literal(1)}, 0, {}}, {"HV", {symbol(kDimHV), literal(1)}, 0, {}}},
    {"key", ConstraintKind::kDivides, {"HK", {symbol(kDimHK), literal(1)}, 0, {}}, {"HV", {symbol(kDimHV), literal(1)}, 0, {}}}};
inline constexpr int rule_0_needs[] = {kDecay};
inline constexpr int rule_1_refuses[] = {kDecay};
inline constexpr int rule_2_needs[] = {kBeta};
inline constexpr int rule_3_refuses[] = {kBeta};
inline constexpr int rule_4_needs[] = {kBonus};
inline constexpr RequiredValueTable rule_4_values[] = {
    {kAttributeUpdateRule, 3}};
inline constexpr int rule_5_refuses[] = {kBonus};
inline constexpr int rule_6_refuses[] = {kPastState};
inline constexpr RequiredValueTable rule_6_values[] = {
    {kAttributeUpdateRule, 1},
    {kAttributeRead, 1}};
inline constexpr RuleTable rules[] = {
    {kAttributeUpdateRule, 10, false, 0, {rule_0_needs, 1}, {}, {}},
    {kAttributeUpdateRule, 5, false, 0, {}, {rule_1_refuses, 1}, {}},
    {kAttributeUpdateRule, 12, false, 0, {rule_2_needs, 1}, {}, {}},
    {kAttributeUpdateRule, 3, false, 0, {}, {rule_3_refuses, 1}, {}},
    {kAttributeRead, 4, false, 0, {rule_4_needs, 1}, {}, {rule_4_values, 1}},
    {kAttributeRead, 3, false, 0, {}, {rule_5_refuses, 1}, {}},
    {kAttributeCausal, 1, false, 0, {}, {rule_6_refuses, 1}, {rule_6_values, 2}}};

inline constexpr OpTable kTable = {
    "LinearAttention",
    "com.fla",
    1,
    {types, 6},
    {combinations, 66},
    {dim_names, 9},
    {positive, 3},
    {aliases, 3},
    {maxima, 1},
    {},
    {attributes, 10},
    {inputs, 8},
    {outputs, 2},
    {constraints, 2},
    {},
    {rules, 7}};

}  // namespace fla::gen::linear_attention

#endif  // FLA_OPS_GEN_LINEAR_ATTENTION_H_
