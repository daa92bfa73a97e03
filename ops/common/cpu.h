// What every CPU kernel shares with its caller: element types, the host's thread pool, the ISA in
// use. No ONNX Runtime header is ever included here; ops/register/ adapts these to ORT.
#ifndef FLA_OPS_COMMON_CPU_H_
#define FLA_OPS_COMMON_CPU_H_

#include <cstdint>

namespace fla {

enum class DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kBool = 3 };

// The host's thread pool. run() calls fn(arg, i) once for every i in [0, total), in any order and
// on any thread, and returns when all are done. Items are uneven, so hand them out dynamically (one
// batch per item). A null run, or threads <= 1, means "everything on the calling thread".
struct Parallel {
  int threads = 1;
  void (*run)(void* ctx, int64_t total, void (*fn)(void* arg, int64_t index), void* arg) = nullptr;
  void* ctx = nullptr;
};

// "avx512", "avx2" or "portable": what this process runs. The environment variable FLA_CPU_ISA
// (same three words) overrides it downwards; it is read once.
const char* cpu_isa();

}  // namespace fla

#endif  // FLA_OPS_COMMON_CPU_H_
