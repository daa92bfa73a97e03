// Checks hybrid_attention_cpu and window_attention_cpu against the dense definition in float64 on
// random cases: every dtype, feature map and parameter, groups, masks, odd sizes, poisoned outputs,
// and split = whole with the states in place. With a cache only the latter. Exit code 1 on any
// failure.
//   check_hybrid_attention [cases] [seed]       FLA_CPU_ISA chooses the ISA
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "ops/hybrid_attention/cpu.h"
#include "test/native/pool.h"
#include "test/native/tensor.h"

using namespace fla;

namespace {

std::mt19937_64 rng;

int pick(int n) { return static_cast<int>(rng() % n); }
double normal() { return std::normal_distribution<double>()(rng); }
double uniform() { return std::uniform_real_distribution<double>()(rng); }

struct Case {
  HybridAttentionParams p;
  bool far = false;  // HybridAttention, else WindowAttention
  Tensor q, k, v, qx, kx, mask, qw, kw, qb, kb, alpha, mean, slopes, bias, decay;
  Tensor out, lse, window, state;
};

using Values = std::vector<double>;

double at(const Tensor& t, size_t i) { return t.values.empty() ? 0 : t.values[i]; }

// map([x W; -x W] + b) of x[D]
Values features(const Case& c, const double* x, const Tensor& W, const Tensor& b, int64_t head) {
  const auto& p = c.p;
  Values u(p.M), y(p.M * p.signs);
  for (int64_t m = 0; m < p.M; m++) {
    if (W.values.empty()) u[m] = x[m];
    for (int64_t d = 0; d < p.D && !W.values.empty(); d++)
      u[m] += x[d] * W.values[(head * p.D + d) * p.M + m];
  }
  double top = -INFINITY, total = 0;
  for (size_t f = 0; f < y.size(); f++) {
    y[f] = (f < u.size() ? u[f] : -u[f - u.size()]) + at(b, head * y.size() + f);
    top = std::max(top, y[f]);
  }
  for (double& e : y) {
    if (p.map == HybridMap::kElu1) e = e > 0 ? e + 1 : std::exp(e);
    if (p.map == HybridMap::kRelu) e = std::max(e, 0.0);
    if (p.map == HybridMap::kExp) e = std::exp(std::min(e, 40.0));
    if (p.map == HybridMap::kSoftmax) total += e = std::exp(e - top);
  }
  if (p.map == HybridMap::kSoftmax)
    for (double& e : y) e /= total;
  return y;
}

// Output and lse of a call without past, from weights of all pairs of tokens.
void reference(const Case& c, Values& out, Values& lse) {
  const auto& p = c.p;
  out.assign(p.B * p.T * p.HQ * p.V, 0);
  lse.assign(p.B * p.T * p.HQ, -1e9);
  const double scale = p.scale ? p.scale : 1 / std::sqrt(static_cast<double>(p.K));
  for (int64_t b = 0; b < p.B; b++) {
    std::vector<int64_t> tokens;
    for (int64_t t = b * p.T; t < (b + 1) * p.T; t++)
      if (c.mask.values.empty() || c.mask.values[t] != 0) tokens.push_back(t);
    for (int64_t h = 0; h < p.HQ; h++) {
      const int64_t g = h / (p.HQ / p.HV);
      std::vector<Values> phi_q, phi_k;
      for (int64_t t : tokens) {
        if (!c.far) break;
        const Tensor &xq = p.E ? c.qx : c.q, &xk = p.E ? c.kx : c.k;
        phi_q.push_back(features(c, &xq.values[(t * p.HQ + h) * p.D], c.qw, c.qb, h));
        phi_k.push_back(features(c, &xk.values[(t * p.HV + g) * p.D], c.kw, c.kb, g));
      }
      for (int64_t i = 0; i < static_cast<int64_t>(tokens.size()); i++) {
        Values sum(p.V);
        double total = 0, near = 0;
        for (int64_t j = 0; j <= i; j++) {
          double weight = 0;
          if (j < p.sinks || j > i - p.window) {
            double s = 0;
            for (int64_t d = 0; d < p.K; d++)
              s += c.q.values[(tokens[i] * p.HQ + h) * p.K + d] *
                   (c.k.values[(tokens[j] * p.HV + g) * p.K + d] - at(c.mean, g * p.K + d));
            s *= scale;
            if (p.softcap) s = p.softcap * std::tanh(s / p.softcap);
            s -= at(c.slopes, h) * (i - j);
            s += at(c.bias, h * (p.window + 1) + std::min(i - j, p.window));
            near += weight = std::exp(s);
          } else if (c.far) {
            for (size_t f = 0; f < phi_q[i].size(); f++) weight += phi_q[i][f] * phi_k[j][f];
            weight *= std::exp(at(c.alpha, h));
            if (i - j > p.window) weight *= std::exp(at(c.decay, g) * (i - p.window - j));
          }
          total += weight;
          for (int64_t d = 0; d < p.V; d++)
            sum[d] += weight * c.v.values[(tokens[j] * p.HV + g) * p.V + d];
        }
        for (int64_t d = 0; d < p.V; d++) out[(tokens[i] * p.HQ + h) * p.V + d] = sum[d] / total;
        lse[tokens[i] * p.HQ + h] = std::log(near);
      }
    }
  }
}

Case random_case() {
  const int sizes[] = {1, 2, 5, 8, 15, 16, 17, 31, 32, 40, 64, 100, 128};
  const int lengths[] = {1, 2, 7, 8, 15, 16, 17, 33, 64, 65, 100, 130, 200};
  Case c;
  auto& p = c.p;
  c.far = pick(4) != 0;
  p.B = 1 + pick(2), p.T = lengths[pick(13)], p.HV = 1 + pick(3);
  p.HQ = p.HV * (1 + pick(3) * pick(2));
  p.K = sizes[pick(13)], p.V = sizes[pick(13)];
  if (p.K + p.V < 4) p.V = 4;
  p.window = pick(3) ? 1 + pick(40) : lengths[pick(13)];
  p.sinks = pick(2) ? 0 : pick(20);
  p.scale = pick(2) ? 0 : 0.3f;
  p.softcap = pick(4) ? 0 : 3;
  p.io = static_cast<DType>(pick(3));
  p.ring = pick(2) ? DType::kFloat32 : p.io;
  p.parameter = pick(2) ? DType::kFloat32 : p.io;
  p.mask_dtype = pick(2) ? DType::kBool : DType::kFloat32;
  p.cache = c.far && pick(5) == 0 ? 1 + pick(8) : 0;
  p.map = static_cast<HybridMap>(1 + pick(4));  // identity makes weights of both signs
  p.signs = 1 + pick(2);
  const bool own = c.far && pick(4) == 0, weights = c.far && pick(2);
  p.D = own ? sizes[pick(11)] : p.K;
  p.E = own ? p.D : 0;
  p.M = weights ? sizes[pick(11)] : p.D;
  auto fill = [](Tensor& t, DType d, int64_t n, auto draw) -> const void* {
    t.alloc(d, n);
    for (int64_t i = 0; i < n; i++) t.set(i, draw());
    return t.data();
  };
  auto parameter = [&](bool given, Tensor& t, int64_t n, auto draw) {
    return given ? fill(t, p.parameter, n, draw) : nullptr;
  };
  const int64_t tokens = p.B * p.T;
  p.query = fill(c.q, p.io, tokens * p.HQ * p.K, normal);
  p.key = fill(c.k, p.io, tokens * p.HV * p.K, normal);
  p.value = fill(c.v, p.io, tokens * p.HV * p.V, normal);
  if (own) p.query_features = fill(c.qx, p.io, tokens * p.HQ * p.D, normal);
  if (own) p.key_features = fill(c.kx, p.io, tokens * p.HV * p.D, normal);
  if (pick(3) == 0) p.mask = fill(c.mask, p.mask_dtype, tokens, [] { return pick(3) ? 1.0 : 0.0; });
  const double spread = 1 / std::sqrt(static_cast<double>(p.D));
  auto weight = [&] { return spread * normal(); };
  p.query_weight = parameter(weights, c.qw, p.HQ * p.D * p.M, weight);
  p.key_weight = parameter(weights, c.kw, p.HV * p.D * p.M, weight);
  p.query_bias = parameter(c.far && pick(2), c.qb, p.HQ * p.M * p.signs, normal);
  p.key_bias = parameter(c.far && pick(2), c.kb, p.HV * p.M * p.signs, normal);
  p.alpha = parameter(c.far && pick(2), c.alpha, p.HQ, normal);
  p.key_mean = parameter(c.far && pick(3) == 0, c.mean, p.HV * p.K, normal);
  p.distance_bias = parameter(pick(3) == 0, c.bias, p.HQ * (p.window + 1), normal);
  p.alibi_slopes = parameter(!p.cache && pick(3) == 0, c.slopes, p.HQ, uniform);
  p.decay = parameter(c.far && !p.cache && pick(3) == 0, c.decay, p.HV, [] { return -uniform(); });
  return c;
}

void fresh_outputs(Case& c) {
  auto& p = c.p;
  c.out.alloc(p.io, p.B * p.T * p.HQ * p.V);
  c.lse.alloc(DType::kFloat32, p.B * p.T * p.HQ);
  c.window.alloc(p.ring, p.B * p.HV * (p.sinks + p.window + p.cache + 1) * (p.K + p.V + p.E));
  c.state.alloc(DType::kFloat32, p.B * p.HV * p.M * p.signs * (p.V + 1));
  p.output = c.out.data();
  p.lse = c.far ? nullptr : reinterpret_cast<float*>(c.lse.data());
  p.present_window = c.window.data();
  p.present_state = reinterpret_cast<float*>(c.state.data());
}

bool run(const Case& c, const HybridAttentionParams& p, const Parallel& par) {
  return c.far ? hybrid_attention_cpu(p, par) : window_attention_cpu(p, par);
}

// Runs [0, cut) then [cut, T) of a B = 1 case; the states stay where they are.
void run_split(Case& c, const Parallel& par, int64_t cut) {
  const HybridAttentionParams whole = c.p;
  auto part = [&](int64_t t0, int64_t t1) {
    HybridAttentionParams p = whole;
    auto from = [&](const void* base, DType d, int64_t row) {
      return base ? static_cast<const char*>(base) + Tensor::width(d) * row * t0 : nullptr;
    };
    p.T = t1 - t0;
    p.query = from(p.query, p.io, p.HQ * p.K);
    p.key = from(p.key, p.io, p.HV * p.K);
    p.value = from(p.value, p.io, p.HV * p.V);
    p.query_features = from(p.query_features, p.io, p.HQ * p.D);
    p.key_features = from(p.key_features, p.io, p.HV * p.D);
    p.mask = from(p.mask, p.mask_dtype, 1);
    p.output = const_cast<char*>(from(p.output, p.io, p.HQ * p.V));
    if (p.lse) p.lse += t0 * p.HQ;
    if (t0 > 0) p.past_window = p.present_window;
    if (t0 > 0 && c.far) p.past_state = p.present_state;
    run(c, p, par);
  };
  part(0, cut);
  part(cut, whole.T);
}

std::string describe(const Case& c) {
  const auto& p = c.p;
  char s[400];
  std::snprintf(s, sizeof s,
                "far%d B%ld T%ld HQ%ld HV%ld K%ld V%ld D%ld M%ld E%ld window%ld sinks%ld cache%ld "
                "map%d signs%ld io%d ring%d par%d mask%d cap%d mean%d slopes%d bias%d decay%d",
                c.far, p.B, p.T, p.HQ, p.HV, p.K, p.V, p.D, p.M, p.E, p.window, p.sinks, p.cache,
                int(p.map), p.signs, int(p.io), int(p.ring), int(p.parameter), p.mask != nullptr,
                p.softcap != 0, p.key_mean != nullptr, p.alibi_slopes != nullptr,
                p.distance_bias != nullptr, p.decay != nullptr);
  return s;
}

// One rounding to 16 bits; the exponents of random scores reach 40 or so.
double tolerance(DType d) {
  return 1e-5 + (d == DType::kFloat16 ? 0x1p-11 : d == DType::kBFloat16 ? 0x1p-8 : 0);
}

bool check(const char* what, const Case& c, const Values& out, const Values& lse) {
  Tensor seen = c.lse;  // -Infinity as the number that the reference has for it
  for (size_t i = 0; i < lse.size() && c.p.lse; i++)
    if (seen.get(i) == -INFINITY) seen.set(i, -1e9);
  const double eo = distance(c.out, out), el = c.p.lse ? distance(seen, lse) : 0;
  if (eo <= tolerance(c.p.io) && el <= 1e-5) return true;
  std::printf("FAIL %s: output %.2e lse %.2e: %s\n", what, eo, el, describe(c).c_str());
  return false;
}

Values values_of(const Tensor& t) {
  Values v(t.values.size());
  for (size_t i = 0; i < v.size(); i++) v[i] = t.get(i);
  return v;
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 500;
  rng.seed(argc > 2 ? std::atoll(argv[2]) : 1);
  Pool pool(2), wide(5);
  const Parallel choices[] = {pool.parallel(), {}, wide.parallel()};
  int failed = 0, done = 0;
  for (int i = 0; i < cases; i++) {
    Case c = random_case();
    const Parallel par = choices[i % 3];
    fresh_outputs(c);
    run(c, c.p, par);
    Values out, lse;
    if (c.p.cache) {
      out = values_of(c.out);
    } else {
      reference(c, out, lse);
      done++, failed += !check("whole", c, out, lse);
    }
    // Keys and values are carried unchanged, so nothing is rounded at the cut.
    if (c.p.B == 1) {
      fresh_outputs(c);
      run_split(c, par, pick(static_cast<int>(c.p.T) + 1));
      done++, failed += !check("split", c, out, lse);
    }
  }
  std::printf("%s: %d passed, %d failed\n", cpu_isa(), done - failed, failed);
  return failed != 0;
}
