// Vectors of float or double as wide as the instruction set this file is compiled for, and exp / log1p on them.
// GCC's and Clang's vector extension: the same source serves SSE2, AVX2, AVX-512 and NEON.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace scanweave {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T> struct Vec;
template <> struct Vec<float> {
  static constexpr int width = kVectorBytes / 4;
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t mask __attribute__((vector_size(kVectorBytes)));
};
template <> struct Vec<double> {
  static constexpr int width = kVectorBytes / 8;
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t mask __attribute__((vector_size(kVectorBytes)));
};
template <class T> using vec = typename Vec<T>::type;
template <class T> constexpr int width = Vec<T>::width;

template <class T> inline vec<T> load(const T* p) {
  vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T> inline void store(T* p, const vec<T>& v) { std::memcpy(p, &v, sizeof v); }
template <class T> inline vec<T> splat(T x) { return vec<T>{} + x; }

// The first n lanes from memory, zero in the rest; no other memory is touched.
#if defined(__AVX512F__)
inline vec<float> load_part(const float* p, int n) { return _mm512_maskz_loadu_ps((1u << n) - 1, p); }
inline vec<double> load_part(const double* p, int n) { return _mm512_maskz_loadu_pd((1u << n) - 1, p); }
inline void store_part(float* p, const vec<float>& v, int n) { _mm512_mask_storeu_ps(p, (1u << n) - 1, v); }
inline void store_part(double* p, const vec<double>& v, int n) { _mm512_mask_storeu_pd(p, (1u << n) - 1, v); }
#elif defined(__AVX2__)
// -1 in the first n lanes.
template <class T> inline __m256i first_lanes(int n) {
  typename Vec<T>::mask lane;
  for (int i = 0; i < width<T>; ++i) lane[i] = i;
  return (__m256i)(lane < n);
}
inline vec<float> load_part(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes<float>(n)); }
inline vec<double> load_part(const double* p, int n) { return _mm256_maskload_pd(p, first_lanes<double>(n)); }
inline void store_part(float* p, const vec<float>& v, int n) { _mm256_maskstore_ps(p, first_lanes<float>(n), v); }
inline void store_part(double* p, const vec<double>& v, int n) { _mm256_maskstore_pd(p, first_lanes<double>(n), v); }
#else
template <class T> inline vec<T> load_part(const T* p, int n) {
  vec<T> v{};
  std::memcpy(&v, p, n * sizeof(T));
  return v;
}
template <class T> inline void store_part(T* p, const vec<T>& v, int n) { std::memcpy(p, &v, n * sizeof(T)); }
#endif

// Lanes in pairs, as complex numbers lie: (0, 1, 2, 3) becomes (0, 0, 2, 2), (1, 1, 3, 3) or (1, 0, 3, 2).
template <class T> inline vec<T> even_lanes(vec<T> v) {
  vec<T> out;
  for (int i = 0; i < width<T>; ++i) out[i] = v[i & ~1];
  return out;
}
template <class T> inline vec<T> odd_lanes(vec<T> v) {
  vec<T> out;
  for (int i = 0; i < width<T>; ++i) out[i] = v[i | 1];
  return out;
}
template <class T> inline vec<T> swap_pairs(vec<T> v) {
  vec<T> out;
  for (int i = 0; i < width<T>; ++i) out[i] = v[i ^ 1];
  return out;
}

template <class V> inline auto sum(const V& v) {
  auto total = v[0];
  for (unsigned i = 1; i < sizeof(V) / sizeof(v[0]); ++i) total += v[i];
  return total;
}

// exp in float: x = n ln 2 + r, |r| <= ln 2 / 2, a degree-6 polynomial in r, then 2^n into the exponent. Relative error
// below 2e-7 over the range; below -87.3 the result is 0, above 88.7 infinity, NaN stays NaN.
inline vec<float> vexp(vec<float> x) {
  typedef Vec<float>::mask mask;
  const vec<float> low = splat(-87.33654f), high = splat(88.72283f);
  const mask under = x < low, over = x > high, nan = x != x;
  vec<float> c = under ? low : x;
  c = over ? high : c;
  c = nan ? splat(0.0f) : c;
  const vec<float> shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  vec<float> n = c * 1.44269504088896341f + shift;
  const mask bits = (mask)n;
  n -= shift;
  const vec<float> r = (c - n * 0.693359375f) - n * -2.12194440e-4f;
  vec<float> p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // n = 128 has no exponent of its own: scale by 2^(n-1), then by 2.
  const mask e = (bits - 0x4B400000 + 126) << 23;
  vec<float> y = p * (vec<float>)e * 2.0f;
  y = under ? splat(0.0f) : y;
  y = over ? splat(__builtin_inff()) : y;
  return nan ? x : y;
}

// Lane by lane in double: it serves gradient checks and references, where digits matter more than time.
inline vec<double> vexp(vec<double> x) {
  for (int i = 0; i < width<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

}  // namespace scanweave
