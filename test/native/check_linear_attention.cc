// Checks linear_attention_cpu against a float64 loop on random cases: every rule, dtype, feature
// map and head grouping, odd sizes, poisoned outputs, split = whole, in-place state. Exit code 1 on
// any failure.
//   check_linear_attention [cases] [seed]       FLA_CPU_ISA chooses the ISA
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "ops/linear_attention/cpu.h"
#include "test/native/pool.h"
#include "test/native/tensor.h"

using namespace fla;

namespace {

std::mt19937_64 rng;

int pick(int n) { return static_cast<int>(rng() % n); }
double normal() { return std::normal_distribution<double>()(rng); }
double uniform() { return std::uniform_real_distribution<double>()(rng); }

struct Case {
  LinearAttentionParams p;
  Tensor q, k, v, past, decay, beta, mask, bonus, out, present;
  bool has_past = false, extreme_decay = false;
};

void phi(const LinearAttentionParams& p, std::vector<double>& x) {
  double total = 0, top = -1e300;
  switch (p.feature_map) {
    case FeatureMap::kIdentity:
      break;
    case FeatureMap::kElu1:
      for (auto& e : x) e = e > 0 ? e + 1 : std::exp(e);
      break;
    case FeatureMap::kRelu:
      for (auto& e : x) e = e > 0 ? e : 0;
      break;
    case FeatureMap::kExp:
      for (auto& e : x) e = std::exp(std::fmin(e, 80.0));
      break;
    case FeatureMap::kSilu:
      for (auto& e : x) e = e / (1 + std::exp(-e));
      break;
    case FeatureMap::kL2Norm:
      for (auto e : x) total += e * e;
      for (auto& e : x) e /= std::sqrt(total + 1e-6);
      break;
    case FeatureMap::kSoftmax:
      for (auto e : x) top = std::fmax(top, e);
      for (auto& e : x) total += e = std::exp(e - top);
      for (auto& e : x) e /= total;
      break;
  }
  if (!p.qk_l2norm) return;
  total = 0;
  for (auto e : x) total += e * e;
  for (auto& e : x) e /= std::sqrt(total + 1e-6);
}

void reference(const Case& c, std::vector<double>& out, std::vector<double>& present) {
  const auto& p = c.p;
  const int64_t B = p.B, T = p.T, Hq = p.Hq, Hk = p.Hk, HV = p.HV, K = p.K, V = p.V,
                W = V + p.normalize;
  const int64_t H = std::max(Hq, HV);
  const double scale = p.scale != 0 ? p.scale : 1 / std::sqrt(static_cast<double>(K));
  out.assign(B * T * H * V, 0);
  present.assign(B * HV * K * W, 0);
  if (c.has_past) present = c.past.values;
  auto read = [&](int64_t b, int64_t t, int64_t hv, const std::vector<double>* k,
                  const std::vector<double>& u) {
    const double* S = present.data() + (b * HV + hv) * K * W;
    for (int64_t h = 0; h < H; h++) {
      if ((Hq >= HV ? h / (Hq / HV) : h) != hv) continue;
      const int64_t hq = Hq >= HV ? h : h / (HV / Hq);
      std::vector<double> q(c.q.values.begin() + ((b * T + t) * Hq + hq) * K,
                            c.q.values.begin() + ((b * T + t) * Hq + hq + 1) * K);
      phi(p, q);
      std::vector<double> o(W, 0);
      for (int64_t j = 0; j < W; j++)
        for (int64_t d = 0; d < K; d++) {
          double s = S[d * W + j];
          if (p.read == ReadMode::kBonus && k) s += c.bonus.values[hv * K + d] * (*k)[d] * u[j];
          o[j] += scale * q[d] * s;
        }
      for (int64_t j = 0; j < V; j++)
        out[((b * T + t) * H + h) * V + j] = p.normalize ? o[j] / (o[V] + 1e-6) : o[j];
    }
  };
  for (int64_t b = 0; b < B; b++)
    for (int64_t hv = 0; hv < HV; hv++) {
      double* S = present.data() + (b * HV + hv) * K * W;
      for (int64_t t = 0; t < T; t++) {
        const int64_t at = (b * T + t) * HV + hv;
        const bool live = !p.mask || c.mask.values[b * T + t] != 0;
        const int64_t hk = hv / (HV / Hk);
        std::vector<double> k(c.k.values.begin() + ((b * T + t) * Hk + hk) * K,
                              c.k.values.begin() + ((b * T + t) * Hk + hk + 1) * K);
        phi(p, k);
        if (!live) k.assign(K, 0);
        std::vector<double> a(K, 1), u(W, 1), w(W, 0);
        for (int64_t d = 0; d < K; d++)
          if (live && p.decay_kind != DecayKind::kNone)
            a[d] = std::exp(c.decay.values[p.decay_kind == DecayKind::kPerHead ? at : at * K + d]);
        for (int64_t j = 0; j < V; j++) u[j] = c.v.values[at * V + j];
        const bool delta = p.rule == UpdateRule::kDelta || p.rule == UpdateRule::kGatedDelta;
        if (delta) {
          double beta = p.beta_kind == BetaKind::kNone      ? 1
                        : p.beta_kind == BetaKind::kPerHead ? c.beta.values[at]
                                                            : c.beta.values[b * T + t];
          if (!live) beta = 0;
          for (int64_t j = 0; j < W; j++) {
            for (int64_t d = 0; d < K; d++) w[j] += k[d] * a[d] * S[d * W + j];
            u[j] = beta * (u[j] - w[j]);
          }
        }
        if (p.causal && p.read != ReadMode::kAfter) read(b, t, hv, &k, u);
        for (int64_t d = 0; d < K; d++)
          for (int64_t j = 0; j < W; j++) S[d * W + j] = a[d] * S[d * W + j] + k[d] * u[j];
        if (p.causal && p.read == ReadMode::kAfter) read(b, t, hv, nullptr, u);
      }
      for (int64_t t = 0; !p.causal && t < T; t++) read(b, t, hv, nullptr, {});
    }
}

Case random_case() {
  Case c;
  auto& p = c.p;
  static const int head[] = {1,  3,  8,  15, 16,  17,  32,  33,  60, 64,
                             64, 64, 80, 96, 100, 128, 128, 130, 256};
  static const int length[] = {1, 1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 64, 65, 100, 129, 200};
  p.B = 1 + pick(2);
  p.T = length[pick(17)];
  p.K = head[pick(19)];
  p.V = head[pick(19)];
  if (pick(40) == 0) p.K = 512, p.T %= 40;
  if (pick(40) == 0) p.V = 512, p.T %= 40;
  const int group = 1 + pick(3);
  p.HV = (1 + pick(3));
  p.Hq = p.HV;
  p.Hk = p.HV;
  switch (pick(4)) {
    case 0:
      break;
    case 1:
      p.Hq = p.HV * group;
      break;
    case 2:
      p.Hk = 1;
      break;
    case 3:
      p.Hq = p.Hk = p.HV, p.HV *= group;
      break;
  }
  p.rule = static_cast<UpdateRule>(pick(4));
  const bool delta = p.rule == UpdateRule::kDelta || p.rule == UpdateRule::kGatedDelta;
  const bool gated = p.rule == UpdateRule::kGated || p.rule == UpdateRule::kGatedDelta;
  p.read = static_cast<ReadMode>(pick(2) ? 0 : pick(3));
  if (delta) {
    p.qk_l2norm = true;
    p.feature_map = pick(3) ? FeatureMap::kIdentity : static_cast<FeatureMap>(pick(7));
  } else {
    p.feature_map = pick(2) ? FeatureMap::kIdentity : static_cast<FeatureMap>(pick(7));
    p.qk_l2norm = pick(4) == 0;
  }
  // Only positive features make q'z a denominator.
  const FeatureMap f = p.feature_map;
  p.normalize = !delta && pick(2) &&
                (f == FeatureMap::kElu1 || f == FeatureMap::kExp || f == FeatureMap::kSoftmax);
  if (p.normalize && p.read != ReadMode::kAfter) p.read = ReadMode::kAfter;
  p.causal = gated || pick(5) != 0;
  if (!p.causal) p.read = ReadMode::kAfter;
  p.scale = pick(2) ? 0 : 0.3f;
  p.io = static_cast<DType>(pick(3));
  p.state = pick(2) ? DType::kFloat32 : p.io;
  p.decay_dtype = pick(2) ? DType::kFloat32 : p.io;
  p.beta_dtype = pick(2) ? DType::kFloat32 : p.io;
  p.bonus_dtype = pick(2) ? DType::kFloat32 : p.io;
  if (gated) p.decay_kind = pick(2) ? DecayKind::kPerHead : DecayKind::kPerKey;
  if (delta) p.beta_kind = static_cast<BetaKind>(pick(3));
  const int64_t W = p.V + p.normalize;
  auto fill = [](Tensor& t, DType d, size_t n, auto gen) {
    t.alloc(d, n);
    for (size_t i = 0; i < n; i++) t.set(i, gen(i));
  };
  fill(c.q, p.io, p.B * p.T * p.Hq * p.K, [](size_t) { return normal(); });
  fill(c.k, p.io, p.B * p.T * p.Hk * p.K, [](size_t) { return normal(); });
  fill(c.v, p.io, p.B * p.T * p.HV * p.V, [](size_t) { return normal(); });
  p.query = c.q.data(), p.key = c.k.data(), p.value = c.v.data();
  c.has_past = pick(3) != 0;
  if (c.has_past) {
    fill(c.past, p.state, p.B * p.HV * p.K * W, [&](size_t i) {
      return p.normalize && i % W == static_cast<size_t>(p.V) ? 1 + uniform() : 0.5 * normal();
    });
    p.past_state = c.past.data();
  }
  if (gated) {
    const double strength[] = {0.01, 0.3, 3, 30};
    const double strong = strength[pick(4)];
    c.extreme_decay = pick(6) == 0;
    fill(c.decay, p.decay_dtype, p.B * p.T * p.HV * (p.decay_kind == DecayKind::kPerKey ? p.K : 1),
         [&](size_t) {
           if (c.extreme_decay && pick(20) == 0) return pick(2) ? -INFINITY : -1000.0;
           return -strong * uniform();
         });
    p.decay = c.decay.data();
  }
  if (p.beta_kind != BetaKind::kNone) {
    fill(c.beta, p.beta_dtype, p.B * p.T * (p.beta_kind == BetaKind::kShared ? 1 : p.HV),
         [](size_t) { return uniform(); });
    p.beta = c.beta.data();
  }
  if (pick(3) == 0) {
    p.mask_dtype = pick(3) == 0 ? DType::kBool : pick(2) ? DType::kFloat32 : p.io;
    // A token before the first visible one has nothing to normalise by.
    fill(c.mask, p.mask_dtype, p.B * p.T, [&](size_t i) {
      return p.normalize && i % p.T == 0 ? 1.0 : pick(3) ? 1.0 : 0.0;
    });
    p.mask = c.mask.data();
  }
  if (p.read == ReadMode::kBonus) {
    fill(c.bonus, p.bonus_dtype, p.HV * p.K, [](size_t) { return normal(); });
    p.bonus = c.bonus.data();
  }
  return c;
}

// Long enough for errors to add up, and for several turns of large groups of states.
Case large_case() {
  Case c;
  auto& p = c.p;
  p.B = 1, p.T = 16400, p.Hq = p.Hk = p.HV = 8, p.K = 16, p.V = 64;
  p.rule = UpdateRule::kGated;
  p.decay_kind = DecayKind::kPerHead;
  auto fill = [](Tensor& t, size_t n, auto gen) {
    t.alloc(DType::kFloat32, n);
    for (size_t i = 0; i < n; i++) t.set(i, gen());
    return t.data();
  };
  p.query = fill(c.q, p.T * p.Hq * p.K, normal);
  p.key = fill(c.k, p.T * p.Hk * p.K, normal);
  p.value = fill(c.v, p.T * p.HV * p.V, normal);
  p.decay = fill(c.decay, p.T * p.HV, [] { return -0.1 * uniform(); });
  return c;
}

void fresh_outputs(Case& c) {
  auto& p = c.p;
  c.out.alloc(p.io, p.B * p.T * std::max(p.Hq, p.HV) * p.V);
  c.present.alloc(p.state, p.B * p.HV * p.K * (p.V + p.normalize));
  p.output = c.out.data();
  p.present_state = c.present.data();
}

std::string describe(const Case& c) {
  const auto& p = c.p;
  char s[400];
  std::snprintf(s, sizeof s,
                "B%ld T%ld Hq%ld Hk%ld HV%ld K%ld V%ld rule%d fm%d read%d norm%d causal%d l2%d "
                "io%d st%d dk%d bk%d "
                "mask%d past%d extreme%d",
                p.B, p.T, p.Hq, p.Hk, p.HV, p.K, p.V, int(p.rule), int(p.feature_map), int(p.read),
                p.normalize, p.causal, p.qk_l2norm, int(p.io), int(p.state), int(p.decay_kind),
                int(p.beta_kind), p.mask != nullptr, c.has_past, c.extreme_decay);
  return s;
}

// About three times the worst error seen: 16-bit results carry their own rounding, float32 the
// sum's.
double tolerance(const LinearAttentionParams& p, DType d) {
  const bool delta = p.rule == UpdateRule::kDelta || p.rule == UpdateRule::kGatedDelta;
  if (d == DType::kFloat16) return 8e-4;
  if (d == DType::kBFloat16) return 5e-3;
  return delta ? 1e-5 : 3e-6;
}

bool check(const char* what, const Case& c, const std::vector<double>& out,
           const std::vector<double>& present, double* worst) {
  const double eo = distance(c.out, out), es = distance(c.present, present);
  worst[static_cast<int>(c.p.io)] = std::fmax(worst[static_cast<int>(c.p.io)], std::fmax(eo, es));
  if (eo <= tolerance(c.p, c.p.io) && es <= tolerance(c.p, c.p.state)) return true;
  std::printf("FAIL %s: output %.2e state %.2e: %s\n", what, eo, es, describe(c).c_str());
  return false;
}

// Runs [0, cut) then [cut, T) of a B = 1 causal case; the state goes through present_state in
// place.
void run_split(Case& c, const Parallel& par, int64_t cut) {
  const LinearAttentionParams whole = c.p;
  auto part = [&](int64_t t0, int64_t t1, const void* past) {
    LinearAttentionParams p = whole;
    auto at = [&](const void* base, DType d, int64_t row) {
      return base ? static_cast<const char*>(base) + Tensor::width(d) * row * t0 : nullptr;
    };
    p.T = t1 - t0;
    p.query = at(p.query, p.io, p.Hq * p.K);
    p.key = at(p.key, p.io, p.Hk * p.K);
    p.value = at(p.value, p.io, p.HV * p.V);
    p.decay = at(p.decay, p.decay_dtype, p.HV * (p.decay_kind == DecayKind::kPerKey ? p.K : 1));
    p.beta = at(p.beta, p.beta_dtype, p.beta_kind == BetaKind::kShared ? 1 : p.HV);
    p.mask = at(p.mask, p.mask_dtype, 1);
    p.output = const_cast<char*>(at(p.output, p.io, std::max(p.Hq, p.HV) * p.V));
    p.past_state = past;
    linear_attention_cpu(p, par);
  };
  part(0, cut, whole.past_state);
  part(cut, whole.T, whole.present_state);
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 500;
  rng.seed(argc > 2 ? std::atoll(argv[2]) : 1);
  Pool pool(2), wide(5);
  const Parallel choices[] = {pool.parallel(), {}, wide.parallel()};
  int failed = 0, run = 0;
  double worst[3] = {};
  for (int i = 0; i < cases; i++) {
    Case c = i == 0 ? large_case() : random_case();
    std::vector<double> out, present;
    reference(c, out, present);
    const Parallel par = choices[i % 3];
    fresh_outputs(c);
    linear_attention_cpu(c.p, par);
    run++, failed += !check("whole", c, out, present, worst);
    if (c.has_past) {
      fresh_outputs(c);
      c.present.bytes = c.past.bytes;
      c.p.past_state = c.p.present_state = c.present.data();
      linear_attention_cpu(c.p, par);
      run++, failed += !check("in place", c, out, present, worst);
      c.p.past_state = c.past.data();
    }
    // A 16-bit state is rounded at the cut, which the reference does not know about.
    if (c.p.B == 1 && c.p.causal && c.p.state == DType::kFloat32) {
      fresh_outputs(c);
      run_split(c, par, pick(static_cast<int>(c.p.T) + 1));
      run++, failed += !check("split", c, out, present, worst);
    }
  }
  std::printf("%s: %d passed, %d failed; worst f32 %.1e f16 %.1e bf16 %.1e\n", cpu_isa(),
              run - failed, failed, worst[0], worst[1], worst[2]);
  return failed != 0;
}
