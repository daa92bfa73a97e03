// Register-blocked products of small row-major float32 matrices, on vec.h.
#ifndef FLA_OPS_COMMON_TILE_H_
#define FLA_OPS_COMMON_TILE_H_

#include "ops/common/vec.h"

namespace fla {
namespace {

constexpr int C = 16;       // tokens per chunk
constexpr int LC = C / VL;  // registers per row of a C x C matrix
constexpr int RT = 4;       // rows of a product tile
constexpr int NT =
    VL == 16 ? 4 : 2;  // registers per row of a product tile: RT * NT accumulators hide FMA latency
constexpr int RS = VL == 16  ? 16
                   : VL == 8 ? 4
                             : 2;  // rows of a C-column tile, RS * LC accumulators
static_assert(C % RS == 0 && C % RT == 0 && C % VL == 0, "tiles must cover a chunk");

// acc[R][N registers] += A B over `depth`, where A's element (r, k) is a[r * a_row + k * a_step]
// and row k of B starts at b + k * b_step.
template <int R, int N>
FLA_INLINE void fma_tile(Vec (&acc)[R][N], const float* a, int64_t a_row, int64_t a_step,
                         const float* b, int64_t b_step, int64_t depth) {
  for (int64_t k = 0; k < depth; k++) {
    Vec row[N];
    FLA_UNROLL
    for (int j = 0; j < N; j++) row[j] = load(b + j * VL);
    FLA_UNROLL
    for (int r = 0; r < R; r++) {
      FLA_UNROLL
      for (int j = 0; j < N; j++) acc[r][j] += a[r * a_row] * row[j];
    }
    a += a_step;
    b += b_step;
  }
}

template <int N>
struct Registers {
  static constexpr int value = N;
};

// Covers `width` (a multiple of VL) columns: fn(Registers<N>, first column).
template <typename F>
FLA_INLINE void for_columns(int width, F fn) {
  int col = 0;
  for (; col + NT * VL <= width; col += NT * VL) fn(Registers<NT>{}, col);
  for (; col < width; col += VL) fn(Registers<1>{}, col);
}

// Both padded with zeros to a multiple of VL.
FLA_INLINE float dot(const float* a, const float* b, int64_t n) {
  Vec acc{};
  for (int64_t i = 0; i < n; i += VL) acc += load(a + i) * load(b + i);
  return sum(acc);
}

// One round of a butterfly transposition: swaps lane blocks of size M between registers M apart.
template <int M>
FLA_INLINE void transpose_round(Vec (&x)[VL]) {
  IVec low, high;
  for (int i = 0; i < VL; i++) {
    low[i] = i & M ? VL + i - M : i;
    high[i] = i & M ? VL + i : i + M;
  }
  FLA_UNROLL
  for (int i = 0; i < VL; i++) {
    if (i & M) continue;
    Vec a = x[i], b = x[i + M];
#if defined(__clang__)
    Vec lo, hi;
    for (int l = 0; l < VL; l++) {
      lo[l] = low[l] < VL ? a[low[l]] : b[low[l] - VL];
      hi[l] = high[l] < VL ? a[high[l]] : b[high[l] - VL];
    }
    x[i] = lo;
    x[i + M] = hi;
#else
    x[i] = __builtin_shuffle(a, b, low);
    x[i + M] = __builtin_shuffle(a, b, high);
#endif
  }
}

// dst[n][C] = src[C][n]'; n a multiple of VL.
inline void transpose(const float* src, int64_t src_stride, float* dst, int64_t n) {
  for (int64_t d = 0; d < n; d += VL) {
    for (int r0 = 0; r0 < C; r0 += VL) {
      Vec x[VL];
      const float* row = src + r0 * src_stride + d;
      FLA_UNROLL
      for (int i = 0; i < VL; i++, row += src_stride) x[i] = load(row);
      transpose_round<1>(x);
      transpose_round<2>(x);
      if constexpr (VL > 4) transpose_round<4>(x);
      if constexpr (VL > 8) transpose_round<8>(x);
      FLA_UNROLL
      for (int i = 0; i < VL; i++) store(dst + (d + i) * C + r0, x[i]);
    }
  }
}

// dst[C][n] = src[n][C]'; n a multiple of VL.
inline void transpose_back(const float* src, float* dst, int64_t dst_stride, int64_t n) {
  for (int64_t d = 0; d < n; d += VL) {
    for (int r0 = 0; r0 < C; r0 += VL) {
      Vec x[VL];
      FLA_UNROLL
      for (int i = 0; i < VL; i++) x[i] = load(src + (d + i) * C + r0);
      transpose_round<1>(x);
      transpose_round<2>(x);
      if constexpr (VL > 4) transpose_round<4>(x);
      if constexpr (VL > 8) transpose_round<8>(x);
      float* row = dst + r0 * dst_stride + d;
      FLA_UNROLL
      for (int i = 0; i < VL; i++, row += dst_stride) store(row, x[i]);
    }
  }
}

}  // namespace
}  // namespace fla

#endif  // FLA_OPS_COMMON_TILE_H_
