// Row-major tiles in shared memory whose 16-byte pieces are permuted within each row, so that the loads of
// a warp's matrix operands, by rows or by columns, spread over the banks. Rows hold at least 128 bytes.
#ifndef FLA_CUDA_COMMON_TILE_CUH_
#define FLA_CUDA_COMMON_TILE_CUH_

#include "cuda/common/mma.cuh"

namespace fla::cuda {

// Offset of element (row, col) in a tile of Width columns.
template <typename E, int Width>
__device__ __forceinline__ int tile_offset(int row, int col) {
  static_assert(Width * sizeof(E) >= 128, "a row must span all banks");
  constexpr int kPiece = 16 / sizeof(E);
  const int mask = sizeof(E) == 4 ? (row & 7) << 1 & (Width / kPiece - 1) : row & 7;
  return row * Width + ((col / kPiece ^ mask) * kPiece | col % kPiece);
}

template <int Trans>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  if constexpr (Trans) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
}

// A = tile[row..row+15, col..col+15]
template <typename E, int Width>
__device__ __forceinline__ void load_a(RawA<E>& a, const E* tile, int row, int col) {
  const int lane = threadIdx.x & 31;
  if constexpr (sizeof(E) == 4) {
    const int g = lane >> 2, c = 2 * (lane & 3);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = load2(tile + tile_offset<E, Width>(row + g + (i & 1) * 8, col + c + (i >> 1) * 8));
      a.r[2 * i] = x.x;
      a.r[2 * i + 1] = x.y;
    }
  } else {
    load_matrices<0>(a.r, tile + tile_offset<E, Width>(row + (lane & 15), col + (lane >> 4) * 8));
  }
}

// A = tile[row..row+15, col..col+15]': rows of A are columns of the tile
template <typename E, int Width>
__device__ __forceinline__ void load_a_transposed(RawA<E>& a, const E* tile, int row, int col) {
  const int lane = threadIdx.x & 31;
  if constexpr (sizeof(E) == 4) {
    const int g = lane >> 2, c = 2 * (lane & 3);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      a.r[i] = tile[tile_offset<E, Width>(row + c + (i & 1) + (i >> 2) * 8, col + g + (i >> 1 & 1) * 8)];
    }
  } else {
    load_matrices<1>(a.r, tile + tile_offset<E, Width>(row + (lane & 7) + (lane >> 4) * 8,
                                                       col + (lane >> 3 & 1) * 8));
  }
}

// Two B operands side by side, inner index along the rows: tile[row..row+15, col..col+15]
template <typename E, int Width>
__device__ __forceinline__ void load_b(RawB<E>& b0, RawB<E>& b1, const E* tile, int row, int col) {
  const int lane = threadIdx.x & 31;
  if constexpr (sizeof(E) == 4) {
    const int g = lane >> 2, c = 2 * (lane & 3);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int k = row + c + (i & 1) + (i >> 1) * 8;
      b0.r[i] = tile[tile_offset<E, Width>(k, col + g)];
      b1.r[i] = tile[tile_offset<E, Width>(k, col + g + 8)];
    }
  } else {
    uint32_t r[4];
    load_matrices<1>(r, tile + tile_offset<E, Width>(row + (lane & 15), col + (lane >> 4) * 8));
    b0.r[0] = r[0];
    b0.r[1] = r[1];
    b1.r[0] = r[2];
    b1.r[1] = r[3];
  }
}

// Two B operands side by side, inner index along the columns: tile[row..row+15, col..col+15]'
template <typename E, int Width>
__device__ __forceinline__ void load_b_transposed(RawB<E>& b0, RawB<E>& b1, const E* tile, int row,
                                                  int col) {
  const int lane = threadIdx.x & 31;
  if constexpr (sizeof(E) == 4) {
    const int g = lane >> 2, c = 2 * (lane & 3);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float2 x = load2(tile + tile_offset<E, Width>(row + g, col + c + i * 8));
      b0.r[2 * i] = x.x;
      b0.r[2 * i + 1] = x.y;
      x = load2(tile + tile_offset<E, Width>(row + g + 8, col + c + i * 8));
      b1.r[2 * i] = x.x;
      b1.r[2 * i + 1] = x.y;
    }
  } else {
    uint32_t r[4];
    load_matrices<0>(r, tile + tile_offset<E, Width>(row + (lane & 7) + (lane >> 4) * 8,
                                                     col + (lane >> 3 & 1) * 8));
    b0.r[0] = r[0];
    b0.r[1] = r[1];
    b1.r[0] = r[2];
    b1.r[1] = r[3];
  }
}

// Starts copying rows [0, Rows) of a [*, row_stride] global matrix, columns [0, cols), into a tile. Rows from
// `valid_rows` on and columns from `cols` on become zeros. With `vectorised` (everything 16-byte aligned and
// cols a multiple of 16 bytes) the copy is asynchronous: commit and wait; otherwise it is done on return.
template <typename E, int Rows, int Width, int Threads>
__device__ __forceinline__ void load_tile(E* tile, const E* src, int64_t row_stride, int valid_rows,
                                          int cols, bool vectorised) {
  constexpr int kPiece = 16 / sizeof(E), kPieces = Width / kPiece;
  if (vectorised) {
#pragma unroll
    for (int i = threadIdx.x; i < Rows * kPieces; i += Threads) {
      const int row = i / kPieces, col = i % kPieces * kPiece;
      const bool valid = row < valid_rows && col < cols;
      copy_async_16(tile + tile_offset<E, Width>(row, col), valid ? src + row * row_stride + col : src,
                    valid);
    }
  } else {
    for (int i = threadIdx.x; i < Rows * Width; i += Threads) {
      const int row = i / Width, col = i % Width;
      const bool valid = row < valid_rows && col < cols;
      tile[tile_offset<E, Width>(row, col)] =
          valid ? src[row * row_stride + col] : from_float<E>(0.f);
    }
  }
}

}  // namespace fla::cuda

#endif  // FLA_CUDA_COMMON_TILE_CUH_
