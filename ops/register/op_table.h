// The shape of the generated tables in ops/gen: one OpTable per operator, a C++ image of its
// schema.ts.
#ifndef FLA_OPS_REGISTER_OP_TABLE_H_
#define FLA_OPS_REGISTER_OP_TABLE_H_

#include <cstdint>

#include "ops/common/cpu.h"

namespace fla {

constexpr int kMaxInputs = 17;
constexpr int kMaxOutputs = 3;
constexpr int kMaxAttributes = 12;
constexpr int kMaxDims = 16;
constexpr int kMaxTypes = 6;
constexpr int kMaxRank = 4;
constexpr int kMaxFactors = 2;
constexpr int kMaxTerms = 3;
constexpr int kMaxShapes = 2;

template <typename T>
struct Span {
  const T* data = nullptr;
  int size = 0;
  constexpr const T* begin() const { return data; }
  constexpr const T* end() const { return data + size; }
  constexpr const T& operator[](int i) const { return data[i]; }
};

enum class AttributeType { kInt, kFloat, kString };

struct AttributeTable {
  const char* name;
  AttributeType type;
  bool required;
  double default_number;       // int and float attributes
  const char* default_string;  // string attributes
  Span<const char*> allowed;   // empty: any value; int values are written as text
  bool has_min;
  int64_t min;
};

// A dimension symbol, or a literal when symbol < 0.
struct Atom {
  int symbol;
  int64_t literal;
};
constexpr Atom symbol(int index) { return {index, 0}; }
constexpr Atom literal(int64_t value) { return {-1, value}; }

struct Term {
  Atom atom;
  int sign;
};

// The product of the factors, plus every sign * atom of the terms.
struct DimTable {
  const char* text;
  Atom factors[kMaxFactors];
  int term_count;
  Term terms[kMaxTerms];
};

struct ShapeTable {
  int rank;
  DimTable dims[kMaxRank];
};

struct InputTable {
  const char* name;
  int type;
  bool optional;
  int shape_count;  // acceptable shapes; the first that fits wins
  ShapeTable shapes[kMaxShapes];
};

struct OutputTable {
  const char* name;
  int type;
  bool optional;
  int in_place_of;  // an input, or -1
  ShapeTable shape;
};

// A dimension known before any shape is: the value of an int attribute, perhaps under a short name.
struct AliasTable {
  int symbol;
  int attribute;
};

// symbol = max(left, right)
struct MaximumTable {
  int symbol;
  int left;
  int right;
};

// A dimension that depends on whether an input is there.
struct PresenceTable {
  int symbol;
  int input;
  bool has_given;  // false: the input's shape says it
  DimTable given;
  DimTable absent;
};

// Left divides right; one of the two divides the other; left is no less than right.
enum class ConstraintKind { kDivides, kNested, kAtLeast };

struct ConstraintTable {
  const char* argument;
  ConstraintKind kind;
  DimTable left;
  DimTable right;
};

// Two optional inputs of which both are given or neither.
struct PairTable {
  int first;
  int second;
};

struct RequiredValueTable {
  int attribute;
  uint32_t allowed;  // bit set over AttributeTable::allowed
};

// Applies when the attribute's value is in `is`, a bit set over AttributeTable::allowed, or
// (has_least) when it is no less than `least`.
struct RuleTable {
  int attribute;
  uint32_t is;
  bool has_least;
  int64_t least;
  Span<int> needs;    // inputs
  Span<int> refuses;  // inputs
  Span<RequiredValueTable> requires_values;
};

// A dtype, or the same dtype as an earlier type variable when variable >= 0.
struct TypeChoice {
  int variable;
  DType dtype;
};

struct TypeTable {
  const char* name;
  Span<TypeChoice> choices;
};

struct TypeCombination {
  DType types[kMaxTypes];  // one per type variable
};

struct OpTable {
  const char* name;
  const char* domain;
  int version;
  Span<TypeTable> types;
  Span<TypeCombination> combinations;
  Span<const char*> dims;  // names of the dimension symbols
  Span<int> positive;      // dimensions that must be at least 1
  Span<AliasTable> aliases;
  Span<MaximumTable> maxima;
  Span<PresenceTable> presence;
  Span<AttributeTable> attributes;
  Span<InputTable> inputs;
  Span<OutputTable> outputs;
  Span<ConstraintTable> constraints;
  Span<PairTable> together;
  Span<RuleTable> rules;
};

}  // namespace fla

#endif  // FLA_OPS_REGISTER_OP_TABLE_H_
