// Matrix products of a warpgroup (4 warps, sm_90a): D 64x64 float += A 64x16 times B 16x64, bf16
// operands. Tiles in shared memory are tiles of tile.cuh with 64 columns: their permutation is the
// hardware's 128-byte swizzle, when the tile is aligned to 1024 bytes. Each warp holds 16 rows of D
// as eight C operands of mma.cuh side by side, and gives its 16 rows of A, when A is in registers,
// as an A operand of mma.cuh. Order of use: wgmma_fence, products, wgmma_commit, wgmma_wait; tiles
// written by ordinary stores or cp.async need fence_for_wgmma by the writers before the barrier; it
// is not cheap.
#ifndef FLA_CUDA_COMMON_WGMMA_CUH_
#define FLA_CUDA_COMMON_WGMMA_CUH_

#include "cuda/common/mma.cuh"

namespace fla::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasWgmma = true;
#else
constexpr bool kHasWgmma = false;
#endif

__device__ __forceinline__ void fence_for_wgmma() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most Pending groups run. Results in registers may be used after it.
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

// Keeps the compiler from moving ordinary code on these registers across this point.
template <int N>
__device__ __forceinline__ void wgmma_pin(float (&d)[N][4]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) asm volatile("" : "+f"(d[i][j])::"memory");
  }
}

// A tile of 64 columns as an operand. Steps of 16 along the inner index: + kStepColumns when the
// inner index runs along the columns, + kStepRows when it runs along the rows (then pass
// Transposed).
__device__ __forceinline__ uint64_t wgmma_operand(const bf16* tile) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kEightRows | uint64_t{1} << 16 | (shared_address(tile) & 0x3ffff) >> 4;
}
constexpr uint64_t kStepColumns = 32 >> 4, kStepRows = 16 * 128 >> 4;

#define FLA_D32(d)                                                                              \
  "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]),     \
      "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), \
      "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]), \
      "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]), \
      "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]), \
      "+f"(d[7][2]), "+f"(d[7][3])
#define FLA_D32_TEXT                                                                            \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24," \
  "%25,%26,%27,%28,%29,%30,%31}"

// D = A B, or D += A B with Add. D may have more than eight tiles; the first eight are used.
template <bool Add, bool TransposedA, bool TransposedB, int N>
__device__ __forceinline__ void wgmma(float (&d)[N][4], uint64_t a, uint64_t b) {
  asm volatile(
      "{.reg .pred p;\nsetp.ne.b32 p, %36, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " FLA_D32_TEXT
      ", %32, %33, p, 1, 1, %34, %35;}"
      : FLA_D32(d)
      : "l"(a), "l"(b), "n"(TransposedA), "n"(TransposedB), "n"(Add));
}
template <bool Add, bool TransposedB, int N>
__device__ __forceinline__ void wgmma(float (&d)[N][4], const RawA<bf16>& a, uint64_t b) {
  asm volatile(
      "{.reg .pred p;\nsetp.ne.b32 p, %38, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " FLA_D32_TEXT
      ", {%32,%33,%34,%35}, %36, p, 1, 1, %37;}"
      : FLA_D32(d)
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b), "n"(TransposedB), "n"(Add));
}

#undef FLA_D32
#undef FLA_D32_TEXT
#endif

}  // namespace fla::cuda

#endif  // FLA_CUDA_COMMON_WGMMA_CUH_
