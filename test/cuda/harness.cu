// Tests of the CUDA LinearAttention kernels against float64.
//   harness cases <file>     the shared cases (dump_cases.ts)
//   harness random [filter]  fresh random inputs over the kernels' configurations; FLA_SEED fixes
//   the seed harness long [filter]    up to a million tokens harness sanitize [filter]  one small
//   call per kernel, for compute-sanitizer
// Every call runs twice on poisoned outputs and must give the same bits.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <random>

#include "test/cuda/support.cuh"

namespace fla_test {
namespace {

using fla::BetaKind;
using fla::DecayKind;
using fla::FeatureMap;
using fla::ReadMode;
using fla::UpdateRule;

const char* const kRules[] = {"linear", "gated", "delta", "gated_delta"};
const char* const kTypes[] = {"f32", "f16", "bf16", "bool"};

bool is_delta(const LinearAttentionParams& p) {
  return p.rule == UpdateRule::kDelta || p.rule == UpdateRule::kGatedDelta;
}

// Of the arithmetic; a tensor stored with 16 bits is allowed its own rounding as well, which these
// include.
double tolerance(const LinearAttentionParams& p, DType stored) {
  const auto of = [&](DType type) {
    if (type == DType::kFloat16) return 2e-3;
    if (type == DType::kBFloat16) return 8e-3;
    return is_delta(p) ? 1e-4 : 1e-5;
  };
  return std::max(of(p.io), of(stored));
}

class Report {
 public:
  void add(const Call& call, const char* what, double error, double limit) {
    const std::string group = std::string(kRules[static_cast<int>(call.params.rule)]) + " " +
                              kTypes[static_cast<int>(call.params.io)] + " " + what;
    Worst& worst = worst_[group];
    worst.count += 1;
    const bool passed = error <= limit;  // false for NaN
    latest_[what] = error;
    if (!passed) failures_ += 1;
    if (!passed || error > worst.error)
      worst = {std::isnan(error) ? INFINITY : error, call.name, worst.count};
    if (!passed) {
      std::printf("FAIL %-60s %s %s %s error %.3g > %.3g\n", call.name.c_str(),
                  kTypes[static_cast<int>(call.params.io)],
                  kTypes[static_cast<int>(call.params.state)], what, error, limit);
    }
  }
  void fail(const Call& call, const char* what) {
    failures_ += 1;
    std::printf("FAIL %-60s %s %s\n", call.name.c_str(), kTypes[static_cast<int>(call.params.io)],
                what);
  }
  double latest(const std::string& what) const { return latest_.at(what); }
  int finish() const {
    for (const auto& [group, worst] : worst_) {
      std::printf("%-28s %5d checks, worst %.3g (%s)\n", group.c_str(), worst.count, worst.error,
                  worst.name.c_str());
    }
    std::printf("%d failures\n", failures_);
    return failures_ > 0;
  }

 private:
  struct Worst {
    double error = -1;
    std::string name;
    int count = 0;
  };
  std::map<std::string, Worst> worst_;
  std::map<std::string, double> latest_;
  int failures_ = 0;
};

// Two runs on poisoned buffers; false when the launch fails or the bits differ.
bool run_twice(const Call& call, Report& report) {
  Buffer first_output(call.output.size()), first_state(call.present_state.size());
  for (int run = 0; run < 2; ++run) {
    call.output.poison();
    call.present_state.poison();
    call.workspace.poison();
    cudaError_t error = call.run();
    if (error == cudaSuccess) error = cudaDeviceSynchronize();
    if (error != cudaSuccess) {
      report.fail(call, cudaGetErrorString(error));
      cudaGetLastError();
      if (cudaDeviceSynchronize() != cudaSuccess) std::exit(1);
      return false;
    }
    if (run == 0) {
      first_output.copy_from(call.output);
      first_state.copy_from(call.present_state);
    }
  }
  if (differ(first_output, call.output) || differ(first_state, call.present_state)) {
    report.fail(call, "differs between two runs");
    return false;
  }
  return true;
}

// The state replaced in place gives the same bits.
void check_in_place(Call& call, Report& report) {
  if (!call.past_state.get() || call.past_state.size() != call.present_state.size()) return;
  Buffer output(call.output.size()), in_place(call.past_state.size());
  output.copy_from(call.output);
  call.output.poison();
  in_place.copy_from(call.past_state);
  call.params.past_state = call.params.present_state = in_place.get();
  if (call.run() != cudaSuccess || differ(output, call.output) ||
      differ(call.present_state, in_place)) {
    report.fail(call, "differs in place");
  }
  call.bind();
}

// ---- shared cases ----

template <typename T>
std::vector<T> read_values(std::ifstream& in, size_t count) {
  std::vector<T> values(count);
  in.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(count * sizeof(T)));
  return values;
}

Buffer read_tensor(std::ifstream& in) {
  const int64_t bytes = read_values<int64_t>(in, 1)[0];
  if (bytes < 0) return Buffer();
  const auto data = read_values<unsigned char>(in, static_cast<size_t>(bytes));
  Buffer buffer(data.size());
  buffer.upload(data.data());
  return buffer;
}

int run_cases(const char* path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    std::fprintf(stderr, "cannot read %s\n", path);
    return 1;
  }
  Report report;
  int32_t length;
  while (in.read(reinterpret_cast<char*>(&length), 4)) {
    Call call;
    const auto name = read_values<char>(in, length);
    call.name.assign(name.begin(), name.end());
    const auto x = read_values<int32_t>(in, 21);
    LinearAttentionParams& p = call.params;
    p.B = x[0];
    p.T = x[1];
    p.Hq = x[2];
    p.Hk = x[3];
    p.HV = x[4];
    p.K = x[5];
    p.V = x[6];
    p.rule = static_cast<UpdateRule>(x[7]);
    p.feature_map = static_cast<FeatureMap>(x[8]);
    p.read = static_cast<ReadMode>(x[9]);
    p.causal = x[10] != 0;
    p.normalize = x[11] != 0;
    p.qk_l2norm = x[12] != 0;
    p.decay_kind = static_cast<DecayKind>(x[13]);
    p.beta_kind = static_cast<BetaKind>(x[14]);
    p.io = static_cast<DType>(x[15]);
    p.state = static_cast<DType>(x[16]);
    p.decay_dtype = static_cast<DType>(x[17]);
    p.beta_dtype = static_cast<DType>(x[18]);
    p.mask_dtype = static_cast<DType>(x[19]);
    p.bonus_dtype = static_cast<DType>(x[20]);
    p.scale = read_values<float>(in, 1)[0];
    for (Buffer* tensor : {&call.query, &call.key, &call.value, &call.past_state, &call.decay,
                           &call.beta, &call.mask, &call.bonus}) {
      *tensor = read_tensor(in);
    }
    const Buffer output = read_tensor(in), state = read_tensor(in);
    call.allocate_outputs();
    const Sizes sizes = sizes_of(p);
    const auto* expected_output = static_cast<const float*>(output.get());
    const auto* expected_state = static_cast<const float*>(state.get());

    // The reference of the random tests answers the cases as well.
    Buffer reference_output(sizes.output * 8), reference_state(sizes.state * 8);
    run_reference(p, static_cast<double*>(reference_output.get()),
                  static_cast<double*>(reference_state.get()));
    const double reference_error = relative_error(
        output.get(), DType::kFloat32, static_cast<double*>(reference_output.get()), sizes.output);
    if (!(reference_error < 1e-6)) report.add(call, "reference", reference_error, 1e-6);

    if (!run_twice(call, report)) continue;
    report.add(call, "output",
               relative_error(call.output.get(), p.io, expected_output, sizes.output),
               tolerance(p, p.io));
    report.add(call, "state",
               relative_error(call.present_state.get(), p.state, expected_state, sizes.state),
               tolerance(p, p.state));
    check_in_place(call, report);
  }
  return report.finish();
}

// ---- random inputs ----

struct Spec {
  const char* name;
  int64_t B, T, Hq, Hk, HV, K, V;
  UpdateRule rule = UpdateRule::kLinear;
  DecayKind decay = DecayKind::kNone;
  float gate = 1.f;  // decay = gate * log sigmoid(N(0,1))
  FeatureMap feature_map = FeatureMap::kIdentity;
  ReadMode read = ReadMode::kAfter;
  bool causal = true, normalize = false, l2norm = false, mask = false, past = true;
};

Call make_call(const Spec& s, DType io, DType state, uint64_t seed) {
  Call call;
  LinearAttentionParams& p = call.params;
  p.B = s.B;
  p.T = s.T;
  p.Hq = s.Hq;
  p.Hk = s.Hk;
  p.HV = s.HV;
  p.K = s.K;
  p.V = s.V;
  p.rule = s.rule;
  p.decay_kind = s.decay;
  p.beta_kind = is_delta(p) ? BetaKind::kPerHead : BetaKind::kNone;
  p.feature_map = s.feature_map;
  p.read = s.read;
  p.causal = s.causal;
  p.normalize = s.normalize;
  p.qk_l2norm = s.l2norm;
  p.io = io;
  p.state = state;
  p.decay_dtype = io;
  p.beta_dtype = io;
  p.mask_dtype = DType::kBool;
  p.bonus_dtype = DType::kFloat32;
  const int64_t tokens = s.B * s.T;
  const auto make = [&](int64_t n, DType type) { return Buffer(n * fla::cuda::size_of(type)); };
  call.name = s.name;
  call.query = make(tokens * s.Hq * s.K, io);
  call.key = make(tokens * s.Hk * s.K, io);
  call.value = make(tokens * s.HV * s.V, io);
  fill(call.query, io, Fill::kNormal, 1, 0, 1, ++seed);
  fill(call.key, io, is_delta(p) ? Fill::kUnit : Fill::kNormal, 1, 0, static_cast<int>(s.K),
       ++seed);
  fill(call.value, io, Fill::kNormal, 1, 0, 1, ++seed);
  if (s.past) {
    // The normaliser's column must be positive; with it all of the state is.
    call.past_state = make(sizes_of(p).state, state);
    fill(call.past_state, state, s.normalize ? Fill::kUniform : Fill::kNormal, 1, 2, 1, ++seed);
  }
  if (s.decay != DecayKind::kNone) {
    call.decay = make(tokens * s.HV * (s.decay == DecayKind::kPerKey ? s.K : 1), io);
    fill(call.decay, io, Fill::kLogSigmoid, s.gate, 0, 1, ++seed);
  }
  if (is_delta(p)) {
    call.beta = make(tokens * s.HV, io);
    fill(call.beta, io, Fill::kUniform, 0, 1, 1, ++seed);
  }
  if (s.mask) {
    call.mask = make(tokens, DType::kBool);
    fill(call.mask, DType::kBool, Fill::kVisible, 0.7f, 0, 1, ++seed);
  }
  if (s.read == ReadMode::kBonus) {
    call.bonus = make(s.HV * s.K, DType::kFloat32);
    fill(call.bonus, DType::kFloat32, Fill::kNormal, 1, 0, 1, ++seed);
  }
  call.allocate_outputs();
  return call;
}

void check_against_reference(Call& call, Report& report) {
  const Sizes sizes = sizes_of(call.params);
  if (!run_twice(call, report)) return;
  Buffer output(sizes.output * 8), state(sizes.state * 8);
  run_reference(call.params, static_cast<double*>(output.get()), static_cast<double*>(state.get()));
  report.add(call, "output",
             relative_error(call.output.get(), call.params.io, static_cast<double*>(output.get()),
                            sizes.output),
             tolerance(call.params, call.params.io));
  report.add(call, "state",
             relative_error(call.present_state.get(), call.params.state,
                            static_cast<double*>(state.get()), sizes.state),
             tolerance(call.params, call.params.state));
}

// Two calls over [0, cut) and [cut, T) of a batch of one, the state carried, against float64 of the
// whole.
void check_split(const Call& call, int64_t cut, Report& report) {
  const LinearAttentionParams& p = call.params;
  if (p.B != 1 || !p.causal || p.T <= cut) return;
  const Sizes sizes = sizes_of(p);
  Buffer expected(sizes.output * 8);
  run_reference(p, static_cast<double*>(expected.get()), nullptr);
  call.output.poison();
  call.present_state.poison();
  const auto at = [&](const void* base, DType type, int64_t elements) {
    return base ? static_cast<const unsigned char*>(base) + elements * fla::cuda::size_of(type)
                : nullptr;
  };
  const int64_t gates = p.HV * (p.decay_kind == DecayKind::kPerKey ? p.K : 1);
  LinearAttentionParams head = p, tail = p;
  head.T = cut;
  tail.T = p.T - cut;
  tail.query = at(p.query, p.io, cut * p.Hq * p.K);
  tail.key = at(p.key, p.io, cut * p.Hk * p.K);
  tail.value = at(p.value, p.io, cut * p.HV * p.V);
  tail.decay = at(p.decay, p.decay_dtype, cut * gates);
  tail.beta = at(p.beta, p.beta_dtype, cut * p.HV);
  tail.mask = at(p.mask, p.mask_dtype, cut);
  tail.output = static_cast<unsigned char*>(p.output) +
                cut * std::max(p.Hq, p.HV) * p.V * fla::cuda::size_of(p.io);
  tail.past_state = tail.present_state = head.present_state;
  for (const LinearAttentionParams& part : {head, tail}) {
    const Buffer workspace(fla::linear_attention_cuda_workspace(part));
    if (fla::linear_attention_cuda(part, workspace.get(), nullptr) != cudaSuccess) {
      report.fail(call, "split launch");
    }
    CHECK(cudaDeviceSynchronize());
  }
  report.add(
      call, "split",
      relative_error(call.output.get(), p.io, static_cast<double*>(expected.get()), sizes.output),
      tolerance(p, p.state));
}

constexpr UpdateRule kLinear = UpdateRule::kLinear, kGated = UpdateRule::kGated,
                     kDelta = UpdateRule::kDelta, kGatedDelta = UpdateRule::kGatedDelta;
constexpr DecayKind kNone = DecayKind::kNone, kPerHead = DecayKind::kPerHead,
                    kPerKey = DecayKind::kPerKey;

const std::vector<Spec>& random_specs() {
  static const std::vector<Spec> specs = [] {
    std::vector<Spec> all = {
        {"linear 64", 1, 1500, 4, 4, 4, 64, 64, kLinear, kNone},
        {"linear 128", 2, 777, 3, 3, 3, 128, 128, kLinear, kNone},
        {"linear 256", 1, 300, 2, 2, 2, 256, 256, kLinear, kNone},
        {"linear 96", 1, 500, 2, 2, 2, 96, 96, kLinear, kNone},
        {"linear 64x128, groups", 1, 500, 4, 1, 2, 64, 128, kLinear, kNone},
        {"linear many heads", 3, 200, 60, 60, 60, 64, 64, kLinear, kNone},
        {"linear odd", 1, 333, 2, 2, 4, 15, 33, kLinear, kNone},
        {"gated head 64", 1, 2048, 4, 4, 4, 64, 64, kGated, kPerHead, 0.1f},
        {"gated head strong", 1, 2048, 4, 4, 4, 64, 64, kGated, kPerHead, 1.f},
        {"gated head 128", 1, 1111, 4, 4, 4, 128, 128, kGated, kPerHead, 0.02f},
        {"gated head 256", 1, 333, 2, 1, 2, 256, 200, kGated, kPerHead, 0.1f},
        {"gated head groups", 2, 500, 2, 2, 8, 64, 64, kGated, kPerHead, 0.1f},
        {"gated key 64", 1, 2048, 4, 4, 4, 64, 64, kGated, kPerKey, 0.25f},
        {"gated key slow", 1, 2048, 4, 4, 4, 64, 64, kGated, kPerKey, 0.01f},
        {"gated key 128", 1, 1111, 4, 4, 4, 128, 128, kGated, kPerKey, 0.25f},
        {"gated key 256", 1, 333, 2, 2, 2, 256, 256, kGated, kPerKey, 0.1f},
        {"gated key strong", 1, 700, 2, 2, 2, 64, 64, kGated, kPerKey, 20.f},
        {"gated key mixed 128", 1, 700, 2, 2, 2, 128, 100, kGated, kPerKey, 1.2f},
        {"cluster linear", 1, 5003, 8, 8, 8, 64, 64, kLinear, kNone},
        {"cluster linear, groups", 2, 3000, 2, 1, 4, 48, 40, kLinear, kNone},
        {"cluster linear, 20 heads", 1, 2600, 20, 20, 20, 64, 64, kLinear, kNone},
        {"cluster linear, 50 heads", 2, 1700, 25, 25, 25, 64, 64, kLinear, kNone},
        {"cluster linear, before", 1, 3333, 4, 2, 8, 64, 32, kLinear, kNone, 1,
         FeatureMap::kIdentity, ReadMode::kBefore},
        {"cluster linear, 6 heads", 1, 9000, 6, 6, 6, 64, 64, kLinear, kNone},
        {"delta 64", 1, 2048, 4, 4, 4, 64, 64, kDelta, kNone},
        {"delta 128", 1, 777, 2, 2, 2, 128, 128, kDelta, kNone},
        {"delta 128, few blocks", 1, 2001, 3, 3, 6, 128, 120, kDelta, kNone},
        {"gated_delta 128, few blocks", 2, 1500, 4, 4, 4, 104, 128, kGatedDelta, kPerHead, 0.2f},
        {"gated_delta key 128, few blocks", 1, 1999, 4, 4, 4, 128, 128, kGatedDelta, kPerKey,
         0.25f},
        {"ahead, delta 128", 1, 500, 32, 32, 32, 128, 128, kDelta, kNone},
        {"ahead, gated_delta 128", 1, 500, 32, 32, 32, 128, 128, kGatedDelta, kPerHead, 0.1f},
        {"ahead, gated_delta key 128", 1, 500, 32, 32, 32, 128, 128, kGatedDelta, kPerKey, 0.25f},
        {"gated_delta 128, many blocks", 3, 200, 32, 32, 32, 128, 128, kGatedDelta, kPerHead, 0.1f},
        {"delta 256", 1, 300, 2, 2, 2, 256, 256, kDelta, kNone},
        {"gated_delta head 64", 1, 2048, 4, 4, 4, 64, 64, kGatedDelta, kPerHead, 0.1f},
        {"gated_delta head 128", 1, 777, 2, 2, 4, 128, 128, kGatedDelta, kPerHead, 0.1f},
        {"gated_delta key 64", 1, 2048, 4, 4, 4, 64, 64, kGatedDelta, kPerKey, 0.25f},
        {"gated_delta key 128", 1, 777, 2, 2, 2, 128, 128, kGatedDelta, kPerKey, 0.25f},
        {"gated_delta key strong", 1, 500, 2, 2, 2, 64, 64, kGatedDelta, kPerKey, 20.f},
        {"decode linear", 4, 1, 8, 8, 8, 128, 128, kLinear, kNone},
        {"decode gated", 2, 5, 8, 8, 8, 64, 64, kGated, kPerHead},
        {"decode gated key", 2, 31, 4, 2, 2, 100, 60, kGated, kPerKey},
        {"decode delta", 2, 3, 8, 8, 8, 128, 128, kDelta, kNone},
        {"decode gated_delta", 2, 1, 4, 4, 8, 256, 256, kGatedDelta, kPerHead},
    };
    // Every option on the chunked kernels, where the rule allows it.
    for (const UpdateRule rule : {kLinear, kGated, kDelta, kGatedDelta}) {
      const bool gated = rule == kGated || rule == kGatedDelta;
      for (const DecayKind decay : {kNone, kPerHead, kPerKey}) {
        if (gated != (decay != kNone)) continue;
        Spec s{"options", 1, 600, 4, 2, 2, 64, 64, rule, decay, 0.2f};
        s.name = "elu1";
        s.feature_map = FeatureMap::kElu1;
        s.l2norm = true;
        all.push_back(s);
        s.name = "elu1, normalize, mask";
        s.normalize = s.mask = true;
        all.push_back(s);
        s.name = "elu1, normalize, V = 100, K = 40";
        s.V = 100;
        s.K = 40;
        all.push_back(s);
        s = {"softmax, before", 2, 400, 2, 2, 4, 128, 64, rule, decay, 0.2f};
        s.feature_map = FeatureMap::kSoftmax;
        s.l2norm = true;
        s.read = ReadMode::kBefore;
        all.push_back(s);
        if (rule == kLinear || rule == kGated) {
          s = {"bonus, silu", 1, 400, 4, 4, 4, 64, 64, rule, decay, 0.5f};
          s.feature_map = FeatureMap::kSilu;
          s.read = ReadMode::kBonus;
          all.push_back(s);
        }
      }
    }
    Spec options{"ahead, mask, before", 2, 333, 16, 16, 16, 128, 128, kGatedDelta, kPerHead, 0.1f};
    options.mask = true;
    options.read = ReadMode::kBefore;
    all.push_back(options);
    options = {"ahead, l2norm, groups", 1, 400, 32, 8, 16, 128, 96, kGatedDelta, kPerKey, 0.25f};
    options.l2norm = true;
    all.push_back(options);
    // One token with the options of linear_attention_token.cu.
    for (const UpdateRule rule : {kLinear, kGated, kDelta, kGatedDelta}) {
      const bool gated = rule == kGated || rule == kGatedDelta;
      for (const DecayKind decay : {kNone, kPerHead, kPerKey}) {
        if (gated != (decay != kNone)) continue;
        all.push_back({"token 128", 3, 1, 8, 8, 8, 128, 128, rule, decay, 0.5f});
        all.push_back({"token 64x100, groups", 2, 1, 2, 1, 4, 64, 100, rule, decay, 0.5f});
        all.push_back({"token 128x100, normalize", 3, 1, 4, 2, 4, 128, 100, rule, decay, 0.5f});
        all.back().feature_map = FeatureMap::kElu1;
        all.back().normalize = true;
        all.push_back({"token 64, normalize, mask", 9, 1, 2, 1, 4, 64, 64, rule, decay, 0.5f});
        all.back().feature_map = FeatureMap::kElu1;
        all.back().normalize = all.back().mask = true;
        all.push_back(
            {"token 128, normalize, 5 queries", 2, 1, 10, 2, 2, 128, 128, rule, decay, 0.5f});
        all.back().normalize = true;
        all.back().feature_map = FeatureMap::kRelu;
        all.push_back({"token 64x33, normalize, before", 2, 1, 8, 2, 4, 64, 33, rule, decay, 0.5f});
        all.back().normalize = true;
        all.back().feature_map = FeatureMap::kElu1;
        all.back().read = ReadMode::kBefore;
        Spec s{"token 256x20, before", 2, 1, 2, 2, 2, 256, 20, rule, decay, 0.5f};
        s.read = ReadMode::kBefore;
        all.push_back(s);
        s = {"token 64, elu1, mask", 5, 1, 4, 4, 4, 64, 64, rule, decay, 0.5f};
        s.feature_map = FeatureMap::kElu1;
        s.mask = true;
        all.push_back(s);
        s.name = "token 64, silu, no past";
        s.feature_map = FeatureMap::kSilu;
        s.past = false;
        all.push_back(s);
      }
    }
    Spec s{"bidirectional", 1, 1000, 4, 2, 2, 64, 64};
    s.causal = false;
    s.past = false;
    all.push_back(s);
    s.name = "bidirectional, elu1, normalize";
    s.feature_map = FeatureMap::kElu1;
    s.normalize = s.mask = true;
    all.push_back(s);
    return all;
  }();
  return specs;
}

uint64_t start_seed() {
  const char* fixed = std::getenv("FLA_SEED");
  const uint64_t seed =
      fixed ? std::strtoull(fixed, nullptr, 10)
            : static_cast<uint64_t>(std::chrono::system_clock::now().time_since_epoch().count());
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  return seed;
}

bool matches(const Spec& s, const char* filter) {
  return !filter || std::strstr(s.name, filter) ||
         std::strcmp(kRules[static_cast<int>(s.rule)], filter) == 0;
}

int run_random(const char* filter) {
  Report report;
  uint64_t seed = start_seed();
  for (const Spec& spec : random_specs()) {
    if (!matches(spec, filter)) continue;
    for (const DType io : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      Call call = make_call(spec, io, DType::kFloat32, seed += 100);
      check_against_reference(call, report);
      check_in_place(call, report);
      check_split(call, spec.T / 3 + 5, report);
      if (io != DType::kFloat32) {
        Call same_type = make_call(spec, io, io, seed += 100);
        check_against_reference(same_type, report);
      }
    }
  }
  return report.finish();
}

int run_long(const char* filter) {
  Report report;
  uint64_t seed = start_seed();
  struct Long {
    Spec spec;
    DType io;
  };
  const int64_t million = 1 << 20;
  const std::vector<Long> all = {
      {{"elu1 1M", 1, million, 2, 2, 2, 64, 64, kLinear, kNone, 1, FeatureMap::kElu1},
       DType::kFloat32},
      {{"linear 1M", 1, million, 8, 8, 8, 64, 64, kLinear, kNone}, DType::kBFloat16},
      {{"linear 1M", 1, million, 2, 2, 2, 64, 64, kLinear, kNone}, DType::kFloat16},
      {{"linear 1M", 1, million, 2, 2, 2, 64, 64, kLinear, kNone}, DType::kFloat32},
      {{"gated slow 1M", 1, million, 8, 8, 8, 64, 64, kGated, kPerHead, 0.001f}, DType::kBFloat16},
      {{"gated 1M", 1, million, 2, 2, 2, 64, 64, kGated, kPerHead, 0.05f}, DType::kFloat32},
      {{"gated key 1M", 1, million, 8, 8, 8, 64, 64, kGated, kPerKey, 0.25f}, DType::kBFloat16},
      {{"gated key 256K", 1, million / 4, 2, 2, 2, 64, 64, kGated, kPerKey, 0.25f},
       DType::kFloat32},
      {{"delta 1M", 1, million, 8, 8, 8, 64, 64, kDelta, kNone}, DType::kBFloat16},
      {{"delta 256K", 1, million / 4, 2, 2, 2, 64, 64, kDelta, kNone}, DType::kFloat32},
      {{"gated_delta 1M", 1, million, 8, 8, 8, 64, 64, kGatedDelta, kPerHead, 0.05f},
       DType::kBFloat16},
      {{"gated_delta key 1M", 1, million, 8, 8, 8, 64, 64, kGatedDelta, kPerKey, 0.25f},
       DType::kBFloat16},
      {{"gated_delta key 256K", 1, million / 4, 2, 2, 2, 64, 64, kGatedDelta, kPerKey, 0.25f},
       DType::kFloat32},
  };
  for (const Long& item : all) {
    if (!matches(item.spec, filter)) continue;
    Call call = make_call(item.spec, item.io, DType::kFloat32, seed += 100);
    check_against_reference(call, report);
    std::printf("%-22s %-4s output error %.2e, workspace %.1f MB\n", call.name.c_str(),
                kTypes[static_cast<int>(item.io)], report.latest("output"),
                static_cast<double>(call.workspace.size()) / 1e6);
    std::fflush(stdout);
  }
  return report.finish();
}

int run_sanitize(const char* filter) {
  Report report;
  uint64_t seed = start_seed();
  for (Spec spec : random_specs()) {
    if (!matches(spec, filter)) continue;
    const bool cluster = std::strstr(spec.name, "cluster");
    // Two steps and a bit of the largest clusters.
    spec.T = std::min<int64_t>(spec.T, cluster ? 2300 : spec.K > 128 ? 150 : 280);
    const bool many = std::strstr(spec.name, "ahead") || std::strstr(spec.name, "many blocks");
    if (spec.HV > 8 && !cluster && !many) continue;
    for (const DType io : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      if (cluster && io != DType::kBFloat16) continue;
      const Call call = make_call(spec, io, DType::kFloat32, seed += 100);
      const cudaError_t error = call.run();
      if (error != cudaSuccess) report.fail(call, cudaGetErrorString(error));
      CHECK(cudaDeviceSynchronize());
    }
  }
  return report.finish();
}

}  // namespace
}  // namespace fla_test

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  const char* argument = argc > 2 ? argv[2] : nullptr;
  if (mode == "cases" && argument) return fla_test::run_cases(argument);
  if (mode == "random") return fla_test::run_random(argument);
  if (mode == "long") return fla_test::run_long(argument);
  if (mode == "sanitize") return fla_test::run_sanitize(argument);
  std::fprintf(stderr,
               "usage: harness cases FILE | random [FILTER] | long [FILTER] | sanitize [FILTER]\n");
  return 2;
}
