// Checks causal_conv_with_state_cpu against a float64 loop: dtypes, kernels, lengths, poisoned
// outputs, split = whole with the state in place. Exit code 1 on any failure.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "ops/causal_conv_with_state/cpu.h"
#include "test/native/pool.h"
#include "test/native/tensor.h"

using namespace fla;

namespace {

std::mt19937_64 rng;
int pick(int n) { return static_cast<int>(rng() % n); }

struct Case {
  CausalConvWithStateParams p;
  Tensor x, w, bias, past, out, present;
};

void reference(const Case& c, std::vector<double>& out, std::vector<double>& present) {
  const auto& p = c.p;
  const int64_t keep = p.kernel - 1;
  for (int64_t row = 0; row < p.B * p.C; row++) {
    std::vector<double> x(keep, 0.0);
    for (int64_t i = 0; p.past_state && i < keep; i++) x[i] = c.past.values[row * keep + i];
    for (int64_t t = 0; t < p.T; t++) x.push_back(c.x.values[row * p.T + t]);
    for (int64_t t = 0; t < p.T; t++) {
      double y = p.bias ? c.bias.values[row % p.C] : 0;
      for (int64_t j = 0; j < p.kernel; j++) y += c.w.values[row % p.C * p.kernel + j] * x[t + j];
      out.push_back(p.silu ? y / (1 + std::exp(-y)) : y);
    }
    present.insert(present.end(), x.end() - keep, x.end());
  }
}

bool check(const char* what, const Case& c, const std::vector<double>& out,
           const std::vector<double>& present) {
  const double tolerance = c.p.io == DType::kFloat32   ? 1e-6
                           : c.p.io == DType::kFloat16 ? 1e-3
                                                       : 8e-3;
  const double eo = distance(c.out, out), es = distance(c.present, present);
  if (eo <= tolerance && es == 0) return true;
  std::printf("FAIL %s: output %.2e state %.2e: B%ld C%ld T%ld k%ld silu%d io%d\n", what, eo, es,
              c.p.B, c.p.C, c.p.T, c.p.kernel, c.p.silu, int(c.p.io));
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 500;
  rng.seed(argc > 2 ? std::atoll(argv[2]) : 1);
  Pool pool(2);
  int failed = 0, run = 0;
  for (int i = 0; i < cases; i++) {
    static const int length[] = {0, 1, 2, 3, 15, 16, 17, 33, 511, 512, 513, 1100};
    Case c;
    auto& p = c.p;
    p.B = 1 + pick(2), p.C = 1 + pick(i % 4 ? 20 : 200), p.T = length[pick(12)],
    p.kernel = 1 + pick(6);
    if (pick(20) == 0) p.kernel = 70;
    p.silu = pick(2), p.io = static_cast<DType>(pick(3));
    auto fill = [&](Tensor& t, int64_t n) {
      t.alloc(p.io, n);
      for (int64_t e = 0; e < n; e++) t.set(e, std::normal_distribution<double>()(rng));
      return t.data();
    };
    const int64_t keep = p.kernel - 1;
    p.input = fill(c.x, p.B * p.C * p.T);
    p.weight = fill(c.w, p.C * p.kernel);
    if (pick(2)) p.bias = fill(c.bias, p.C);
    if (pick(2)) p.past_state = fill(c.past, p.B * p.C * keep);
    std::vector<double> out, present;
    reference(c, out, present);
    auto fresh = [&] {
      c.out.alloc(p.io, p.B * p.C * p.T);
      c.present.alloc(p.io, p.B * p.C * keep);
      p.output = c.out.data(), p.present_state = c.present.data();
    };
    fresh();
    causal_conv_with_state_cpu(p, pool.parallel());
    run++, failed += !check("whole", c, out, present);
    if (!p.past_state) continue;
    fresh();
    c.present.bytes = c.past.bytes;
    p.past_state = p.present_state;
    causal_conv_with_state_cpu(p, {});
    run++, failed += !check("in place", c, out, present);
  }
  std::printf("%s: %d passed, %d failed\n", cpu_isa(), run - failed, failed);
  return failed != 0;
}
