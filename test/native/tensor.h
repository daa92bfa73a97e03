// A tensor of any dtype together with the exact values its bytes hold.
#ifndef FLA_TEST_NATIVE_TENSOR_H_
#define FLA_TEST_NATIVE_TENSOR_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "ops/common/cpu.h"

using fla::DType;

// ---- scalar conversions written independently of the kernel's

inline uint16_t to_bf16(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if (x != x) return 0x7fc0;
  u += 0x7fff + ((u >> 16) & 1);
  return static_cast<uint16_t>(u >> 16);
}
inline double from_bf16(uint16_t b) {
  uint32_t u = static_cast<uint32_t>(b) << 16;
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}
inline double from_f16(uint16_t h) {
  int e = (h >> 10) & 31, m = h & 1023;
  double x = e == 31  ? (m ? std::nan("") : std::numeric_limits<double>::infinity())
             : e == 0 ? std::ldexp(m, -24)
                      : std::ldexp(1024 + m, e - 25);
  return h & 0x8000 ? -x : x;
}
inline uint16_t to_f16(double x) {
  uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  x = std::fabs(x);
  if (x != x) return 0x7e00;
  if (x >= 65520) return sign | 0x7c00;
  if (x < std::ldexp(1, -14))
    return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(x, 24)));
  int e;
  std::frexp(x, &e);
  int q = static_cast<int>(std::nearbyint(std::ldexp(x, 11 - e)));  // 1024..2048
  return sign | static_cast<uint16_t>(((e + 13) << 10) + q);
}

struct Tensor {
  DType dtype = DType::kFloat32;
  std::vector<unsigned char> bytes;
  std::vector<double> values;  // exactly what the bytes hold

  static size_t width(DType d) { return d == DType::kFloat32 ? 4 : d == DType::kBool ? 1 : 2; }
  void alloc(DType d, size_t n) {
    dtype = d;
    bytes.assign(n * width(d), 0xff);  // NaN in every float type
    values.assign(n, 0);
  }
  void set(size_t i, double x) {
    unsigned char* at = bytes.data() + i * width(dtype);
    float f = static_cast<float>(x);
    uint16_t h = dtype == DType::kFloat16 ? to_f16(x) : to_bf16(f);
    if (dtype == DType::kFloat32)
      std::memcpy(at, &f, 4);
    else if (dtype == DType::kBool)
      *at = x != 0;
    else
      std::memcpy(at, &h, 2);
    values[i] = get(i);
  }
  double get(size_t i) const {
    const unsigned char* at = bytes.data() + i * width(dtype);
    float f;
    uint16_t h;
    if (dtype == DType::kBool) return *at;
    if (dtype == DType::kFloat32) return std::memcpy(&f, at, 4), f;
    std::memcpy(&h, at, 2);
    return dtype == DType::kFloat16 ? from_f16(h) : from_bf16(h);
  }
  void* data() { return bytes.data(); }
};

// |got - want| / |want|; infinite when anything is NaN, poison included.
inline double distance(const Tensor& got, const std::vector<double>& want) {
  double err = 0, norm = 0;
  for (size_t i = 0; i < want.size(); i++) {
    const double x = got.get(i);
    if (x != x) return INFINITY;
    err += (x - want[i]) * (x - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(err / (norm + 1e-30));
}

#endif  // FLA_TEST_NATIVE_TENSOR_H_
