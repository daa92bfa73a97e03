// Times LinearAttention on a CUDA device: one JSON line per row.
//   bench [filter] [seconds]     only rows whose "op BxTxHxD" contains filter; stops starting rows
//   after `seconds`
//   bench export <folder>     inputs of 16K tokens, the float64 result and our error, for peers.py
// Inputs are random and rotate among several sets, so that nothing stays in the L2 cache between
// calls. `ms` is the median over single calls timed with events, `graph_ms` a graph of calls
// replayed, per call. `bytes` counts every input once and every output once; `of_copy` is bytes /
// graph_ms over the copy bandwidth measured first.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "cuda/linear_attention_kernels.h"
#include "test/cuda/support.cuh"

namespace fla_test {
namespace {

using fla::BetaKind;
using fla::DecayKind;
using fla::FeatureMap;
using fla::UpdateRule;

struct Op {
  const char* name;
  UpdateRule rule;
  DecayKind decay;
  float gate;  // decay = gate * log sigmoid(N(0,1)), as FLA's own benchmark draws it
  DType decay_type;
  bool clusters = true;  // false: two passes over the inputs, where one by clusters would do
  FeatureMap feature_map = FeatureMap::kIdentity;  // elu1: with the normaliser
};

const Op kOps[] = {
    {"linear", UpdateRule::kLinear, DecayKind::kNone, 0, DType::kFloat32},
    {"linear(two passes)", UpdateRule::kLinear, DecayKind::kNone, 0, DType::kFloat32, false},
    {"linear(elu1)", UpdateRule::kLinear, DecayKind::kNone, 0, DType::kFloat32, true,
     FeatureMap::kElu1},
    {"gated", UpdateRule::kGated, DecayKind::kPerHead, 1, DType::kFloat32},
    {"gated(slow)", UpdateRule::kGated, DecayKind::kPerHead, 1e-4f, DType::kFloat32},
    {"gla", UpdateRule::kGated, DecayKind::kPerKey, 0.25f, DType::kBFloat16},
    {"gla(slow)", UpdateRule::kGated, DecayKind::kPerKey, 1e-4f, DType::kBFloat16},
    {"delta", UpdateRule::kDelta, DecayKind::kNone, 0, DType::kFloat32},
    {"gated_delta", UpdateRule::kGatedDelta, DecayKind::kPerHead, 1, DType::kFloat32},
    {"kda", UpdateRule::kGatedDelta, DecayKind::kPerKey, 0.25f, DType::kFloat32},
};

struct Shape {
  int64_t B, T, H, D;
  bool has_past;
};

Call make_call(const Op& op, const Shape& s, DType io, uint64_t seed) {
  Call call;
  LinearAttentionParams& p = call.params;
  p.B = s.B;
  p.T = s.T;
  p.Hq = p.Hk = p.HV = s.H;
  p.K = p.V = s.D;
  p.rule = op.rule;
  p.decay_kind = op.decay;
  p.feature_map = op.feature_map;
  p.normalize = op.feature_map != FeatureMap::kIdentity;
  p.io = io;
  // float16 decoding is how ONNX models do it: the state has the type of the rest.
  p.state = io == DType::kFloat16 && s.T == 1 ? io : DType::kFloat32;
  p.decay_dtype = op.decay_type == DType::kFloat32 ? DType::kFloat32 : io;
  p.beta_dtype = io;
  const bool delta = op.rule == UpdateRule::kDelta || op.rule == UpdateRule::kGatedDelta;
  p.beta_kind = delta ? BetaKind::kPerHead : BetaKind::kNone;
  const int64_t heads = s.B * s.T * s.H;
  const size_t io_size = fla::cuda::size_of(io);
  for (Buffer* tensor : {&call.query, &call.key, &call.value}) {
    *tensor = Buffer(heads * s.D * io_size);
    const bool unit = delta && tensor == &call.key;
    fill(*tensor, io, unit ? Fill::kUnit : Fill::kNormal, 1, 0, static_cast<int>(s.D), ++seed);
  }
  if (op.decay != DecayKind::kNone) {
    const int64_t n = heads * (op.decay == DecayKind::kPerKey ? s.D : 1);
    call.decay = Buffer(n * fla::cuda::size_of(p.decay_dtype));
    fill(call.decay, p.decay_dtype, Fill::kLogSigmoid, op.gate, 0, 1, ++seed);
  }
  if (delta) {
    call.beta = Buffer(heads * io_size);
    fill(call.beta, io, Fill::kUniform, 0, 1, 1, ++seed);
  }
  if (s.has_past) {
    call.past_state = Buffer(s.B * s.H * s.D * (s.D + p.normalize) * fla::cuda::size_of(p.state));
    fill(call.past_state, p.state, Fill::kNormal, 1, 0, 1, ++seed);
  }
  call.allocate_outputs();
  return call;
}

double median(std::vector<float>& x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

struct Events {
  cudaEvent_t begin, end;
  Events() {
    CHECK(cudaEventCreate(&begin));
    CHECK(cudaEventCreate(&end));
  }
  float elapsed() const {
    float ms;
    CHECK(cudaEventSynchronize(end));
    CHECK(cudaEventElapsedTime(&ms, begin, end));
    return ms;
  }
};

double copy_bandwidth(cudaStream_t stream) {
  const size_t bytes = size_t{1} << 30;
  const Buffer a(bytes), b(bytes);
  fill(a, DType::kBFloat16, Fill::kNormal, 1, 0, 1, 1);
  CHECK(cudaDeviceSynchronize());
  const Events events;
  std::vector<float> times;
  for (int i = 0; i < 20; ++i) {
    CHECK(cudaEventRecord(events.begin, stream));
    CHECK(cudaMemcpyAsync(b.get(), a.get(), bytes, cudaMemcpyDeviceToDevice, stream));
    CHECK(cudaEventRecord(events.end, stream));
    times.push_back(events.elapsed());
  }
  return 2.0 * bytes / median(times) / 1e9;  // TB/s
}

void run_row(const Op& op, const Shape& shape, DType io, double bandwidth, cudaStream_t stream) {
  fla::cuda::clusters_enabled = op.clusters;
  std::vector<Call> sets;
  sets.push_back(make_call(op, shape, io, 1));
  const auto bytes_of = [](const Call& c) {
    return c.query.size() + c.key.size() + c.value.size() + c.decay.size() + c.beta.size() +
           c.past_state.size() + c.output.size() + c.present_state.size();
  };
  const size_t bytes = bytes_of(sets[0]);
  const size_t count = std::max<size_t>(1, std::min<size_t>(16, (size_t{256} << 20) / bytes));
  while (sets.size() < count) sets.push_back(make_call(op, shape, io, 100 * sets.size()));
  CHECK(cudaDeviceSynchronize());

  for (int i = 0; i < 3; ++i) {
    const cudaError_t error = sets[i % count].run(stream);
    if (error != cudaSuccess) {
      std::printf("{\"op\":\"%s\",\"error\":\"%s\"}\n", op.name, cudaGetErrorString(error));
      return;
    }
  }
  CHECK(cudaStreamSynchronize(stream));
  const Events events;
  std::vector<float> eager, graphed;
  for (int i = 0; i < 40; ++i) {
    CHECK(cudaEventRecord(events.begin, stream));
    sets[i % count].run(stream);
    CHECK(cudaEventRecord(events.end, stream));
    eager.push_back(events.elapsed());
  }
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (const Call& call : sets) call.run(stream);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  for (int i = 0; i < 15; ++i) {
    CHECK(cudaEventRecord(events.begin, stream));
    CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaEventRecord(events.end, stream));
    graphed.push_back(events.elapsed() / static_cast<float>(count));
  }
  CHECK(cudaGraphExecDestroy(exec));
  CHECK(cudaGraphDestroy(graph));
  const double ms = median(eager), graph_ms = median(graphed);
  const char* types[] = {"f32", "f16", "bf16"};
  std::printf(
      "{\"op\":\"%s\",\"type\":\"%s\",\"B\":%lld,\"T\":%lld,\"H\":%lld,\"D\":%lld,\"ms\":%.4f,"
      "\"graph_ms\":%.4f,"
      "\"bytes\":%zu,\"of_copy\":%.3f,\"workspace\":%zu}\n",
      op.name, types[static_cast<int>(io)], static_cast<long long>(shape.B),
      static_cast<long long>(shape.T), static_cast<long long>(shape.H),
      static_cast<long long>(shape.D), ms, graph_ms, bytes, bytes / graph_ms / 1e9 / bandwidth,
      sets[0].workspace.size());
  std::fflush(stdout);
}

void write_file(const std::string& path, const Buffer& buffer) {
  std::vector<unsigned char> host(buffer.size());
  CHECK(cudaMemcpy(host.data(), buffer.get(), buffer.size(), cudaMemcpyDeviceToHost));
  std::FILE* file = std::fopen(path.c_str(), "wb");
  const bool written =
      file && std::fwrite(host.data(), 1, host.size(), file) == host.size() && !std::fclose(file);
  if (written) return;
  std::fprintf(stderr, "cannot write %s\n", path.c_str());
  std::exit(1);
}

int run_export(const std::string& folder) {
  const Shape shape = {1, 16384, 8, 64, false};
  for (const Op& op : kOps) {
    if (std::strchr(op.name, '(')) continue;
    const Call call = make_call(op, shape, DType::kBFloat16, 7);
    const Sizes sizes = sizes_of(call.params);
    const Buffer expected(sizes.output * 8);
    CHECK(call.run());
    run_reference(call.params, static_cast<double*>(expected.get()), nullptr);
    const double error = relative_error(call.output.get(), call.params.io,
                                        static_cast<double*>(expected.get()), sizes.output);
    const std::string path = folder + "/" + op.name + ".";
    write_file(path + "query", call.query);
    write_file(path + "key", call.key);
    write_file(path + "value", call.value);
    if (call.decay.size()) write_file(path + "decay", call.decay);
    if (call.beta.size()) write_file(path + "beta", call.beta);
    write_file(path + "expected", expected);
    std::FILE* file = std::fopen((path + "json").c_str(), "w");
    if (!file) return 1;
    std::fprintf(file,
                 "{\"op\":\"%s\",\"B\":%lld,\"T\":%lld,\"H\":%lld,\"D\":%lld,"
                 "\"decay_type\":\"%s\",\"ours\":%.6e}\n",
                 op.name, static_cast<long long>(shape.B), static_cast<long long>(shape.T),
                 static_cast<long long>(shape.H), static_cast<long long>(shape.D),
                 op.decay_type == DType::kFloat32 ? "f32" : "bf16", error);
    std::fclose(file);
  }
  return 0;
}

int run(const char* filter, double seconds) {
  const auto start = std::chrono::steady_clock::now();
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  cudaStream_t stream;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const double bandwidth = copy_bandwidth(stream);
  std::printf("{\"device\":\"%s\",\"copy_TBps\":%.3f}\n", device.name, bandwidth);
  const Shape shapes[] = {
      {1, 4096, 8, 64, false},   {1, 16384, 8, 64, false},   {1, 65536, 8, 64, false},
      {1, 262144, 8, 64, false}, {1, 1048576, 8, 64, false}, {1, 8192, 32, 128, false},
      {1, 65536, 8, 128, false}, {8, 4096, 16, 128, false},  {1, 1, 32, 128, true},
      {64, 1, 32, 128, true},    {256, 1, 32, 128, true}};
  for (const DType io : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
    for (const Shape& shape : shapes) {
      for (const Op& op : kOps) {
        char name[96];
        const char* types[] = {"f32", "f16", "bf16"};
        std::snprintf(name, sizeof(name), "%s %s %lldx%lldx%lldx%lld", op.name,
                      types[static_cast<int>(io)], static_cast<long long>(shape.B),
                      static_cast<long long>(shape.T), static_cast<long long>(shape.H),
                      static_cast<long long>(shape.D));
        if (filter && !std::strstr(name, filter)) continue;
        const bool wanted = io == DType::kBFloat16 || shape.T == 65536 || shape.T == 1;
        if (!filter && !wanted) continue;
        const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
        if (spent.count() > seconds) continue;
        run_row(op, shape, io, bandwidth, stream);
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace fla_test

int main(int argc, char** argv) {
  if (argc > 2 && !std::strcmp(argv[1], "export")) return fla_test::run_export(argv[2]);
  return fla_test::run(argc > 1 && argv[1][0] ? argv[1] : nullptr,
                       argc > 2 ? std::atof(argv[2]) : 1e9);
}
