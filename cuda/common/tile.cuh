// Row-major tiles in shared memory whose 8-element pieces are permuted within each row, so that the
// loads of a warp's matrix operands, by rows or by columns, spread over the banks. A tile is
// aligned to its row's bytes.
#ifndef FLA_CUDA_COMMON_TILE_CUH_
#define FLA_CUDA_COMMON_TILE_CUH_

#include "cuda/common/mma.cuh"

namespace fla::cuda {

// Offset of element (row, col) in a tile of Width columns, a power of two.
template <typename E, int Width>
__device__ __forceinline__ uint32_t tile_offset(uint32_t row, uint32_t col) {
  static_assert(Width * sizeof(E) >= 128 && (Width & (Width - 1)) == 0,
                "a row must span all banks");
  return row * Width + (col ^ ((row & 7) * 8 & (Width - 1)));
}

// The same for (row + r, col + c) from the offset of (r, c), where row is a multiple of 8, col one
// of 16, c < 16. With constant row and col this is one instruction.
template <int Width>
__device__ __forceinline__ uint32_t tile_step(uint32_t offset, uint32_t row, uint32_t col) {
  return (offset ^ col) + row * Width;
}

template <int Trans, typename E>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const E* tile, uint32_t offset) {
  const uint32_t address = shared_address(tile) + offset * sizeof(E);
  if constexpr (Trans) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
  }
}

// In all loads below, row and col are multiples of 16.

// A = tile[row..row+15, col..col+15]
template <typename E, int Width>
__device__ __forceinline__ void load_a(RawA<E>& a, const E* tile, uint32_t row, uint32_t col) {
  const uint32_t lane = threadIdx.x & 31;
  if constexpr (sizeof(E) == 4) {
    const uint32_t at = tile_offset<E, Width>(lane >> 2, 2 * (lane & 3));
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const float2 x =
          load2(tile + (tile_step<Width>(at, row, col) ^ (i >> 1) * 8) + (i & 1) * 8 * Width);
      a.r[2 * i] = x.x;
      a.r[2 * i + 1] = x.y;
    }
  } else {
    const uint32_t at = tile_offset<E, Width>(lane & 15, (lane >> 4) * 8);
    load_matrices<0>(a.r, tile, tile_step<Width>(at, row, col));
  }
}

// A = tile[row..row+15, col..col+15]': rows of A are columns of the tile
template <typename E, int Width>
__device__ __forceinline__ void load_a_transposed(RawA<E>& a, const E* tile, uint32_t row,
                                                  uint32_t col) {
  const uint32_t lane = threadIdx.x & 31;
  if constexpr (sizeof(E) == 4) {
    const uint32_t g = lane >> 2, c = 2 * (lane & 3);
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
      const uint32_t at = tile_offset<E, Width>(c + (i & 1), g);
      a.r[i] = tile[(tile_step<Width>(at, row, col) ^ (i >> 1 & 1) * 8) + (i >> 2) * 8 * Width];
    }
  } else {
    const uint32_t at = tile_offset<E, Width>((lane & 7) + (lane >> 4) * 8, (lane >> 3 & 1) * 8);
    load_matrices<1>(a.r, tile, tile_step<Width>(at, row, col));
  }
}

// Two B operands side by side, inner index along the rows: tile[row..row+15, col..col+15]
template <typename E, int Width>
__device__ __forceinline__ void load_b(RawB<E>& b0, RawB<E>& b1, const E* tile, uint32_t row,
                                       uint32_t col) {
  const uint32_t lane = threadIdx.x & 31;
  if constexpr (sizeof(E) == 4) {
    const uint32_t g = lane >> 2, c = 2 * (lane & 3);
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t at =
          tile_step<Width>(tile_offset<E, Width>(c + (i & 1), g), row, col) + (i >> 1) * 8 * Width;
      b0.r[i] = tile[at];
      b1.r[i] = tile[at ^ 8];
    }
  } else {
    uint32_t r[4];
    const uint32_t at = tile_offset<E, Width>(lane & 15, (lane >> 4) * 8);
    load_matrices<1>(r, tile, tile_step<Width>(at, row, col));
    b0.r[0] = r[0];
    b0.r[1] = r[1];
    b1.r[0] = r[2];
    b1.r[1] = r[3];
  }
}

// Two B operands side by side, inner index along the columns: tile[row..row+15, col..col+15]'
template <typename E, int Width>
__device__ __forceinline__ void load_b_transposed(RawB<E>& b0, RawB<E>& b1, const E* tile,
                                                  uint32_t row, uint32_t col) {
  const uint32_t lane = threadIdx.x & 31;
  if constexpr (sizeof(E) == 4) {
    const uint32_t at =
        tile_step<Width>(tile_offset<E, Width>(lane >> 2, 2 * (lane & 3)), row, col);
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      float2 x = load2(tile + (at ^ i * 8));
      b0.r[2 * i] = x.x;
      b0.r[2 * i + 1] = x.y;
      x = load2(tile + (at ^ i * 8) + 8 * Width);
      b1.r[2 * i] = x.x;
      b1.r[2 * i + 1] = x.y;
    }
  } else {
    uint32_t r[4];
    const uint32_t at = tile_offset<E, Width>((lane & 7) + (lane >> 4) * 8, (lane >> 3 & 1) * 8);
    load_matrices<0>(r, tile, tile_step<Width>(at, row, col));
    b0.r[0] = r[0];
    b0.r[1] = r[1];
    b1.r[0] = r[2];
    b1.r[1] = r[3];
  }
}

// Starts copying rows [0, Rows) of a [*, row_stride] global matrix, columns [0, cols), into a tile.
// Rows from `valid_rows` on and columns from `cols` on become zeros. With `vectorised` (everything
// 16-byte aligned and cols a multiple of 16 bytes) the copy is asynchronous: commit and wait;
// otherwise it is done on return.
template <typename E, int Rows, int Width, int Threads>
__device__ __forceinline__ void load_tile(E* tile, const E* src, int64_t row_stride, int valid_rows,
                                          int cols, bool vectorised) {
  constexpr uint32_t kPiece = 16 / sizeof(E), kPieces = Width / kPiece;
  const uint32_t thread = threadIdx.x;
  if (vectorised) {
    // Every thread keeps its column and walks down the rows in steps that keep the permutation.
    constexpr uint32_t kStep = Threads / kPieces;
    static_assert(Threads % kPieces == 0 && Rows % kStep == 0, "");
    const uint32_t row = thread / kPieces, col = thread % kPieces * kPiece;
    const bool in_columns = col < static_cast<uint32_t>(cols);
    const E* from = src + row * row_stride + (in_columns ? col : 0);
    const uint32_t first = shared_address(tile) + tile_offset<E, Width>(row, col) * sizeof(E);
#pragma unroll
    for (uint32_t i = 0; i < Rows / kStep; ++i) {
      const bool valid = in_columns && static_cast<int>(row + i * kStep) < valid_rows;
      const uint32_t to = kStep % 8 == 0
                              ? first + i * kStep * Width * static_cast<uint32_t>(sizeof(E))
                              : shared_address(tile) + tile_offset<E, Width>(row + i * kStep, col) *
                                                           static_cast<uint32_t>(sizeof(E));
      copy_async_16(to, valid ? from : src, valid);
      from += kStep * row_stride;
    }
  } else {
    for (uint32_t i = thread; i < Rows * Width; i += Threads) {
      const uint32_t row = i / Width, col = i % Width;
      const bool valid = static_cast<int>(row) < valid_rows && static_cast<int>(col) < cols;
      tile[tile_offset<E, Width>(row, col)] =
          valid ? src[row * row_stride + col] : from_float<E>(0.f);
    }
  }
}

}  // namespace fla::cuda

#endif  // FLA_CUDA_COMMON_TILE_CUH_
