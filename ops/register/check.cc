#include "ops/register/check.h"

#include <algorithm>
#include <cstdio>

namespace fla {
namespace {

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kBool:
      return "bool";
  }
  return "an unsupported type";
}

std::string join(const std::vector<std::string>& items, const char* separator) {
  std::string text;
  for (size_t i = 0; i < items.size(); ++i) text += (i ? separator : "") + items[i];
  return text;
}

std::string list(const std::vector<int64_t>& shape) {
  std::vector<std::string> items;
  for (int64_t size : shape) items.push_back(std::to_string(size));
  return "[" + join(items, ",") + "]";
}

std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

std::string value_text(const AttributeTable& attribute, const AttributeValue& value) {
  switch (attribute.type) {
    case AttributeType::kInt:
      return std::to_string(value.i);
    case AttributeType::kFloat:
      return number_text(value.f);
    case AttributeType::kString:
      return value.s;
  }
  return "";
}

// ---- dimensions ----

int64_t look_up(const Atom& atom, const Dims& dims) {
  return atom.symbol < 0 ? atom.literal : dims.values[atom.symbol];
}

// The sum of the terms, kUnknown while a symbol is; `known` tells it from a sum of -1.
int64_t sum_of_terms(const DimTable& dim, const Dims& dims, bool* known) {
  int64_t sum = 0;
  *known = true;
  for (int i = 0; i < dim.term_count; ++i) {
    const int64_t value = look_up(dim.terms[i].atom, dims);
    if (value == kUnknown) *known = false;
    sum += dim.terms[i].sign * value;
  }
  return sum;
}

int64_t evaluate(const DimTable& dim, const Dims& dims) {
  int64_t size = 1;
  for (const Atom& factor : dim.factors) {
    const int64_t value = look_up(factor, dims);
    if (value == kUnknown) return kUnknown;
    size *= value;
  }
  bool known = false;
  const int64_t rest = sum_of_terms(dim, dims, &known);
  return known ? size + rest : kUnknown;
}

bool contains(const Span<int>& span, int value) {
  return std::find(span.begin(), span.end(), value) != span.end();
}

// Gives the one unknown symbol of `dim` the value that makes it equal `size`; false if there is
// none.
bool solve(const OpTable& op, const DimTable& dim, int64_t size, Dims* dims) {
  if (size == kUnknown) return true;
  const int64_t expected = evaluate(dim, *dims);
  if (expected != kUnknown) return expected == size;
  bool known = false;
  int64_t rest = size - sum_of_terms(dim, *dims, &known);
  if (!known) return true;  // nothing to learn yet
  int unknown = -1;
  for (const Atom& factor : dim.factors) {
    const int64_t value = look_up(factor, *dims);
    if (value == kUnknown) {
      if (unknown >= 0) return true;  // two unknowns: nothing to learn yet
      unknown = factor.symbol;
    } else if (value == 0 || rest % value != 0) {
      return false;
    } else {
      rest /= value;
    }
  }
  if (rest < (contains(op.positive, unknown) ? 1 : 0)) return false;
  dims->values[unknown] = rest;
  return true;
}

bool solve_shape(const OpTable& op, const ShapeTable& shape, const std::vector<int64_t>& sizes,
                 Dims* dims) {
  if (sizes.size() != static_cast<size_t>(shape.rank)) return false;
  for (int i = 0; i < shape.rank; ++i) {
    if (!solve(op, shape.dims[i], sizes[i], dims)) return false;
  }
  return true;
}

std::string atom_text(const OpTable& op, const Atom& atom, const Dims& dims) {
  const int64_t value = look_up(atom, dims);
  return value == kUnknown ? op.dims[atom.symbol] : std::to_string(value);
}

// `8*V`: the dimension with what is known filled in.
std::string fill(const OpTable& op, const DimTable& dim, const Dims& dims) {
  const int64_t known = evaluate(dim, dims);
  if (known != kUnknown) return std::to_string(known);
  std::string text = atom_text(op, dim.factors[0], dims);
  if (dim.factors[1].symbol >= 0) text += "*" + atom_text(op, dim.factors[1], dims);
  for (int i = 0; i < dim.term_count; ++i) {
    text += (dim.terms[i].sign < 0 ? "-" : "+") + atom_text(op, dim.terms[i].atom, dims);
  }
  return text;
}

// `[B,T,HV*V] = [2,64,8*V]`
std::string describe(const OpTable& op, const ShapeTable& shape, const Dims& dims) {
  std::vector<std::string> names;
  std::vector<std::string> sizes;
  for (int i = 0; i < shape.rank; ++i) {
    names.push_back(shape.dims[i].text);
    sizes.push_back(fill(op, shape.dims[i], dims));
  }
  return "[" + join(names, ",") + "] = [" + join(sizes, ",") + "]";
}

Dims known_dims(const OpTable& op, const Attributes& attributes) {
  Dims dims;
  std::fill(std::begin(dims.values), std::end(dims.values), kUnknown);
  for (const AliasTable& alias : op.aliases) {
    dims.values[alias.symbol] = attributes[alias.attribute].i;
  }
  return dims;
}

std::string check_shape(const OpTable& op, const InputTable& input, const TensorSpec& spec,
                        Dims* dims) {
  for (int i = 0; i < input.shape_count; ++i) {
    Dims trial = *dims;
    if (!solve_shape(op, input.shapes[i], spec.shape, &trial)) continue;
    *dims = trial;
    return "";
  }
  std::vector<std::string> expected;
  for (int i = 0; i < input.shape_count; ++i) {
    expected.push_back(describe(op, input.shapes[i], *dims));
  }
  return check_message(op, input.name, join(expected, " or "), list(spec.shape));
}

// Gives the dimensions that depend on the presence of an input their sizes.
void solve_presence(const OpTable& op, int input, bool given, Dims* dims) {
  for (const PresenceTable& presence : op.presence) {
    if (presence.input != input || (given && !presence.has_given)) continue;
    dims->values[presence.symbol] = evaluate(given ? presence.given : presence.absent, *dims);
  }
}

std::string check_constraint(const OpTable& op, const ConstraintTable& constraint,
                             const Dims& dims) {
  const int64_t left = evaluate(constraint.left, dims);
  const int64_t right = evaluate(constraint.right, dims);
  if (left < 1 || right < 1) return "";  // unknown, or an attribute that is refused by itself
  const std::string a = constraint.left.text;
  std::string b = constraint.right.text;
  if (b != std::to_string(right)) b += " = " + std::to_string(right);
  std::string expected;
  switch (constraint.kind) {
    case ConstraintKind::kDivides:
      if (right % left == 0) return "";
      expected = "such that " + a + " divides " + b;
      break;
    case ConstraintKind::kNested:
      if (right % left == 0 || left % right == 0) return "";
      expected = "such that one of " + a + " and " + b + " divides the other";
      break;
    case ConstraintKind::kAtLeast:
      if (left >= right) return "";
      expected = "such that " + a + " is at least " + b;
      break;
  }
  return check_message(op, constraint.argument, expected, a + " = " + std::to_string(left));
}

// ---- rules ----

bool applies(const RuleTable& rule, const Attributes& attributes) {
  const AttributeValue& value = attributes[rule.attribute];
  return rule.has_least ? value.i >= rule.least : (rule.is >> value.index) & 1u;
}

std::string when(const OpTable& op, const RuleTable& rule, const Attributes& attributes) {
  const AttributeTable& attribute = op.attributes[rule.attribute];
  return std::string("when ") + attribute.name + "=" +
         value_text(attribute, attributes[rule.attribute]);
}

std::string allowed_text(const AttributeTable& attribute, uint32_t allowed, const char* separator) {
  std::vector<std::string> names;
  for (int i = 0; i < attribute.allowed.size; ++i) {
    if ((allowed >> i) & 1u) names.push_back(attribute.allowed[i]);
  }
  return join(names, separator);
}

}  // namespace

std::string check_message(const OpTable& op, const std::string& argument,
                          const std::string& expected, const std::string& received) {
  return std::string(op.name) + ": " + argument + " must be " + expected + ", received " + received;
}

std::string check_attribute(const OpTable& op, int index, AttributeValue* value) {
  const AttributeTable& attribute = op.attributes[index];
  const std::string text = value_text(attribute, *value);
  for (int i = 0; i < attribute.allowed.size; ++i) {
    if (text == attribute.allowed[i]) value->index = i;
  }
  if (attribute.allowed.size > 0 && value->index < 0) {
    return check_message(op, attribute.name, "one of " + allowed_text(attribute, ~0u, ", "), text);
  }
  if (attribute.has_min && value->i < attribute.min) {
    return check_message(op, attribute.name, "at least " + std::to_string(attribute.min), text);
  }
  return "";
}

std::string check_attribute_rules(const OpTable& op, const Attributes& attributes) {
  for (const RuleTable& rule : op.rules) {
    if (!applies(rule, attributes)) continue;
    for (const RequiredValueTable& required : rule.requires_values) {
      const AttributeTable& attribute = op.attributes[required.attribute];
      const AttributeValue& value = attributes[required.attribute];
      if ((required.allowed >> value.index) & 1u) continue;
      const std::string expected =
          allowed_text(attribute, required.allowed, " or ") + " " + when(op, rule, attributes);
      return check_message(op, attribute.name, expected, value_text(attribute, value));
    }
  }
  return "";
}

std::string check_presence(const OpTable& op, const Attributes& attributes,
                           const std::vector<TensorSpec>& inputs) {
  for (int i = 0; i < op.inputs.size; ++i) {
    if (!op.inputs[i].optional && !inputs[i].present) {
      return check_message(op, op.inputs[i].name, "given", "none");
    }
  }
  for (const PairTable& pair : op.together) {
    if (inputs[pair.first].present == inputs[pair.second].present) continue;
    const int given = inputs[pair.first].present ? pair.first : pair.second;
    const int missing = given == pair.first ? pair.second : pair.first;
    return check_message(op, op.inputs[missing].name,
                         std::string("given when ") + op.inputs[given].name + " is", "none");
  }
  for (const RuleTable& rule : op.rules) {
    if (!applies(rule, attributes)) continue;
    for (int i : rule.needs) {
      if (!inputs[i].present)
        return check_message(op, op.inputs[i].name, "given " + when(op, rule, attributes), "none");
    }
    for (int i : rule.refuses) {
      if (!inputs[i].present) continue;
      return check_message(op, op.inputs[i].name, "absent " + when(op, rule, attributes),
                           list(inputs[i].shape));
    }
  }
  return "";
}

std::string check_types(const OpTable& op, const std::vector<TensorSpec>& inputs) {
  DType known[kMaxTypes];
  bool is_known[kMaxTypes] = {};
  for (int i = 0; i < op.inputs.size; ++i) {
    if (!inputs[i].present) continue;
    const int type = op.inputs[i].type;
    std::vector<DType> choices;
    if (is_known[type]) {
      choices.push_back(known[type]);
    } else {
      for (const TypeChoice& choice : op.types[type].choices) {
        const DType dtype = choice.variable < 0 ? choice.dtype : known[choice.variable];
        if (std::find(choices.begin(), choices.end(), dtype) == choices.end())
          choices.push_back(dtype);
      }
    }
    if (std::find(choices.begin(), choices.end(), inputs[i].dtype) == choices.end()) {
      std::vector<std::string> names;
      for (DType dtype : choices) names.push_back(dtype_name(dtype));
      const std::string expected =
          std::string("of type ") + op.types[type].name + " = " + join(names, " or ");
      return check_message(op, op.inputs[i].name, expected, dtype_name(inputs[i].dtype));
    }
    known[type] = inputs[i].dtype;
    is_known[type] = true;
  }
  return "";
}

std::string solve_dims(const OpTable& op, const Attributes& attributes,
                       const std::vector<TensorSpec>& inputs, Dims* dims) {
  *dims = known_dims(op, attributes);
  for (int i = 0; i < op.inputs.size; ++i) {
    solve_presence(op, i, inputs[i].present, dims);
    if (!inputs[i].present) continue;
    std::string message = check_shape(op, op.inputs[i], inputs[i], dims);
    if (!message.empty()) return message;
  }
  for (const ConstraintTable& constraint : op.constraints) {
    std::string message = check_constraint(op, constraint, *dims);
    if (!message.empty()) return message;
  }
  for (const MaximumTable& maximum : op.maxima) {
    dims->values[maximum.symbol] = std::max((*dims)[maximum.left], (*dims)[maximum.right]);
  }
  return "";
}

std::vector<int64_t> output_shape(const OpTable& op, int output, const Dims& dims) {
  const ShapeTable& shape = op.outputs[output].shape;
  std::vector<int64_t> sizes;
  for (int i = 0; i < shape.rank; ++i) sizes.push_back(evaluate(shape.dims[i], dims));
  return sizes;
}

}  // namespace fla
