// Generated from ops/hybrid_attention/schema.ts by `npm run gen`. Do not edit.
// clang-format off
#ifndef FLA_OPS_GEN_HYBRID_ATTENTION_H_
#define FLA_OPS_GEN_HYBRID_ATTENTION_H_

#include "ops/register/op_table.h"

namespace fla::gen::hybrid_attention {

enum Input : int { kQuery, kKey, kValue, kQueryFeatures, kKeyFeatures, kMask, kQueryWeight, kKeyWeight, kQueryBias, kKeyBias, kAlpha, kKeyMean, kAlibiSlopes, kDistanceBias, kDecay, kPastWindow, kPastState };
enum Output : int { kOutput, kPresentWindow, kPresentState };
enum Attribute : int { kAttributeQNumHeads, kAttributeKvNumHeads, kAttributeWindow, kAttributeSinks, kAttributeCache, kAttributeScale, kAttributeSoftcap, kAttributeFeatureMap, kAttributeSigns };
enum Dim : int { kDimHQ, kDimHV, kDimB, kDimT, kDimK, kDimV, kDimD, kDimM, kDimSigns, kDimWindow, kDimSinks, kDimCache, kDimE };
enum Type : int { kTypeT, kTypeR, kTypeM, kTypeW, kTypeS };
enum FeatureMap : int { kFeatureMapIdentity, kFeatureMapElu1, kFeatureMapRelu, kFeatureMapExp, kFeatureMapSoftmax };

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
inline constexpr TypeChoice type_S[] = {
    {-1, DType::kFloat32}};
inline constexpr TypeTable types[] = {
    {"T", {type_T, 3}},
    {"R", {type_R, 2}},
    {"M", {type_M, 2}},
    {"W", {type_W, 2}},
    {"S", {type_S, 1}}};
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
inline constexpr const char* dim_names[] = {"HQ", "HV", "B", "T", "K", "V", "D", "M", "signs", "window", "sinks", "cache", "E"};
inline constexpr int positive[] = {kDimK, kDimV, kDimD, kDimM};
inline constexpr AliasTable aliases[] = {
    {kDimHQ, kAttributeQNumHeads},
    {kDimHV, kAttributeKvNumHeads},
    {kDimSigns, kAttributeSigns},
    {kDimWindow, kAttributeWindow},
    {kDimSinks, kAttributeSinks},
    {kDimCache, kAttributeCache}};
inline constexpr PresenceTable presence[] = {
    {kDimD, kQueryFeatures, false, {"K", {symbol(kDimK), literal(1)}, 0, {}}, {"K", {symbol(kDimK), literal(1)}, 0, {}}},
    {kDimE, kKeyFeatures, true, {"D", {symbol(kDimD), literal(1)}, 0, {}}, {"0", {literal(0), literal(1)}, 0, {}}},
    {kDimM, kQueryWeight, false, {"D", {symbol(kDimD), literal(1)}, 0, {}}, {"D", {symbol(kDimD), literal(1)}, 0, {}}}};
inline constexpr const char* allowed_feature_map[] = {"identity", "elu1", "relu", "exp", "softmax"};
inline constexpr const char* allowed_signs[] = {"1", "2"};
inline constexpr AttributeTable attributes[] = {
    {"q_num_heads", AttributeType::kInt, true, 0, nullptr, {}, true, 1},
    {"kv_num_heads", AttributeType::kInt, true, 0, nullptr, {}, true, 1},
    {"window", AttributeType::kInt, true, 0, nullptr, {}, true, 1},
    {"sinks", AttributeType::kInt, false, 0, nullptr, {}, true, 0},
    {"cache", AttributeType::kInt, false, 0, nullptr, {}, true, 0},
    {"scale", AttributeType::kFloat, false, 0, nullptr, {}, false, 0},
    {"softcap", AttributeType::kFloat, false, 0, nullptr, {}, false, 0},
    {"feature_map", AttributeType::kString, false, 0, "exp", {allowed_feature_map, 5}, false, 0},
    {"signs", AttributeType::kInt, false, 2, nullptr, {allowed_signs, 2}, false, 0}};
inline constexpr InputTable inputs[] = {
    {"query", kTypeT, false, 1, {
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}, {"HQ*K", {symbol(kDimHQ), symbol(kDimK)}, 0, {}}}}}},
    {"key", kTypeT, false, 1, {
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}, {"HV*K", {symbol(kDimHV), symbol(kDimK)}, 0, {}}}}}},
    {"value", kTypeT, false, 1, {
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}, {"HV*V", {symbol(kDimHV), symbol(kDimV)}, 0, {}}}}}},
    {"query_features", kTypeT, true, 1, {
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}, {"HQ*D", {symbol(kDimHQ), symbol(kDimD)}, 0, {}}}}}},
    {"key_features", kTypeT, true, 1, {
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}, {"HV*D", {symbol(kDimHV), symbol(kDimD)}, 0, {}}}}}},
    {"mask", kTypeM, true, 1, {
      {2, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}}}}},
    {"query_weight", kTypeW, true, 1, {
      {3, {{"HQ", {symbol(kDimHQ), literal(1)}, 0, {}}, {"D", {symbol(kDimD), literal(1)}, 0, {}}, {"M", {symbol(kDimM), literal(1)}, 0, {}}}}}},
    {"key_weight", kTypeW, true, 1, {
      {3, {{"HV", {symbol(kDimHV), literal(1)}, 0, {}}, {"D", {symbol(kDimD), literal(1)}, 0, {}}, {"M", {symbol(kDimM), literal(1)}, 0, {}}}}}},
    {"query_bias", kTypeW, true, 1, {
      {2, {{"HQ", {symbol(kDimHQ), literal(1)}, 0, {}}, {"M*signs", {symbol(kDimM), symbol(kDimSigns)}, 0, {}}}}}},
    {"key_bias", kTypeW, true, 1, {
      {2, {{"HV", {symbol(kDimHV), literal(1)}, 0, {}}, {"M*signs", {symbol(kDimM), symbol(kDimSigns)}, 0, {}}}}}},
    {"alpha", kTypeW, true, 1, {
      {1, {{"HQ", {symbol(kDimHQ), literal(1)}, 0, {}}}}}},
    {"key_mean", kTypeW, true, 1, {
      {2, {{"HV", {symbol(kDimHV), literal(1)}, 0, {}}, {"K", {symbol(kDimK), literal(1)}, 0, {}}}}}},
    {"alibi_slopes", kTypeW, true, 1, {
      {1, {{"HQ", {symbol(kDimHQ), literal(1)}, 0, {}}}}}},
    {"distance_bias", kTypeW, true, 1, {
      {2, {{"HQ", {symbol(kDimHQ), literal(1)}, 0, {}}, {"window+1", {symbol(kDimWindow), literal(1)}, 1, {{literal(1), 1}}}}}}},
    {"decay", kTypeW, true, 1, {
      {1, {{"HV", {symbol(kDimHV), literal(1)}, 0, {}}}}}},
    {"past_window", kTypeR, true, 1, {
      {4, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"HV", {symbol(kDimHV), literal(1)}, 0, {}}, {"sinks+window+cache+1", {symbol(kDimSinks), literal(1)}, 3, {{symbol(kDimWindow), 1}, {symbol(kDimCache), 1}, {literal(1), 1}}}, {"K+V+E", {symbol(kDimK), literal(1)}, 2, {{symbol(kDimV), 1}, {symbol(kDimE), 1}}}}}}},
    {"past_state", kTypeS, true, 1, {
      {4, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"HV", {symbol(kDimHV), literal(1)}, 0, {}}, {"M*signs", {symbol(kDimM), symbol(kDimSigns)}, 0, {}}, {"V+1", {symbol(kDimV), literal(1)}, 1, {{literal(1), 1}}}}}}}};
inline constexpr OutputTable outputs[] = {
    {"output", kTypeT, false, -1,
      {3, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"T", {symbol(kDimT), literal(1)}, 0, {}}, {"HQ*V", {symbol(kDimHQ), symbol(kDimV)}, 0, {}}}}},
    {"present_window", kTypeR, true, kPastWindow,
      {4, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"HV", {symbol(kDimHV), literal(1)}, 0, {}}, {"sinks+window+cache+1", {symbol(kDimSinks), literal(1)}, 3, {{symbol(kDimWindow), 1}, {symbol(kDimCache), 1}, {literal(1), 1}}}, {"K+V+E", {symbol(kDimK), literal(1)}, 2, {{symbol(kDimV), 1}, {symbol(kDimE), 1}}}}}},
    {"present_state", kTypeS, true, kPastState,
      {4, {{"B", {symbol(kDimB), literal(1)}, 0, {}}, {"HV", {symbol(kDimHV), literal(1)}, 0, {}}, {"M*signs", {symbol(kDimM), symbol(kDimSigns)}, 0, {}}, {"V+1", {symbol(kDimV), literal(1)}, 1, {{literal(1), 1}}}}}}};
inline constexpr ConstraintTable constraints[] = {
    {"query", ConstraintKind::kDivides, {"HV", {symbol(kDimHV), literal(1)}, 0, {}}, {"HQ", {symbol(kDimHQ), literal(1)}, 0, {}}},
    {"value", ConstraintKind::kAtLeast, {"K+V", {symbol(kDimK), literal(1)}, 1, {{symbol(kDimV), 1}}}, {"4", {literal(4), literal(1)}, 0, {}}}};
inline constexpr PairTable together[] = {
    {kQueryFeatures, kKeyFeatures},
    {kQueryWeight, kKeyWeight}};
inline constexpr int rule_0_refuses[] = {kAlibiSlopes, kDecay};
inline constexpr RuleTable rules[] = {
    {kAttributeCache, 0, true, 1, {}, {rule_0_refuses, 2}, {}}};

inline constexpr OpTable kTable = {
    "HybridAttention",
    "com.fla",
    1,
    {types, 5},
    {combinations, 18},
    {dim_names, 13},
    {positive, 4},
    {aliases, 6},
    {},
    {presence, 3},
    {attributes, 9},
    {inputs, 17},
    {outputs, 3},
    {constraints, 2},
    {together, 2},
    {rules, 1}};

}  // namespace fla::gen::hybrid_attention

#endif  // FLA_OPS_GEN_HYBRID_ATTENTION_H_
