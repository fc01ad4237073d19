// Gates and step sizes on vectors: a cheap power of two, softplus and the logistic function.
#pragma once
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "simd.h"

namespace scanweave {

// The greater and the lesser of a bound and x; NaN in x stays.
#if defined(__AVX512F__)
inline vec<float> at_least(vec<float> bound, vec<float> x) { return _mm512_max_ps(bound, x); }
inline vec<float> at_most(vec<float> bound, vec<float> x) { return _mm512_min_ps(bound, x); }
#elif defined(__AVX2__)
inline vec<float> at_least(vec<float> bound, vec<float> x) { return _mm256_max_ps(bound, x); }
inline vec<float> at_most(vec<float> bound, vec<float> x) { return _mm256_min_ps(bound, x); }
#else
inline vec<float> at_least(vec<float> bound, vec<float> x) { return bound > x ? bound : x; }
inline vec<float> at_most(vec<float> bound, vec<float> x) { return bound < x ? bound : x; }
#endif

// Decays are exponentials of products: `Power<T>::base(delta * (a * Power<T>::scale))` is exp(delta a).
template <class T> struct Power;

// 2^(n + r) for |r| <= 1/2 and n an integer that was rounded by adding `kRound`: a polynomial of degree 5 with 2^0 = 1
// exactly, n added to its exponent.
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
inline vec<float> power_of_two(vec<float> rounded, vec<float> r) {
  const vec<float> r2 = r * r;
  const vec<float> low = r * 6.9314698e-1f + 1.0f, middle = r * 5.550734e-2f + 2.4022242e-1f;
  const vec<float> p = ((r * 1.32647e-3f + 9.67151e-3f) * r2 + middle) * r2 + low;
  typedef Vec<float>::mask mask;
  return (vec<float>)((mask)p + ((mask)rounded << 23));
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// A table of eight roots, which a vector of eight holds, leaves less to the polynomial.
template <> struct Power<float> {
  static constexpr float scale = 8 * 1.44269504088896341f;

  // 2^(x / 8): relative error below 2e-7; 0 below -1016, infinity from 1023.5 on, NaN stays NaN. With x = 8 n + j + r,
  // |r| <= 1/2, it is 2^(j / 8) from the table, n added to its exponent, times a cubic of r. The table's bits are
  // short of j << 20, which `rounded` << 20 brings beside n << 23.
  static inline vec<float> base(vec<float> x) {
    typedef Vec<float>::mask mask;
    const __m256i roots = _mm256_setr_epi32(0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7, 0x3f7504f3, 0x3f75672a,
                                            0x3f7744fd, 0x3f7ac0c7);
    x = at_most(splat(1024.0f), at_least(splat(-1016.0f), x));
    const vec<float> rounded = x + kRound, r = x - (rounded - kRound);
    const mask root = (mask)_mm256_permutevar8x32_epi32(roots, (__m256i)rounded);
    const vec<float> power = (vec<float>)(root + ((mask)rounded << 20));
    return power * (((r * 1.0839106e-4f + 3.7540255e-3f) * r + 8.6643402e-2f) * r + 1.0f);
  }
};
#else
template <> struct Power<float> {
  static constexpr float scale = 1.44269504088896341f;

  // 2^x: relative error below 2e-7; 0 below -127, infinity from 128 on, NaN stays NaN.
  static inline vec<float> base(vec<float> x) {
    x = at_most(splat(128.0f), at_least(splat(-127.0f), x));
    const vec<float> rounded = x + kRound;
    return power_of_two(rounded, x - (rounded - kRound));
  }
};
#endif

template <> struct Power<double> {
  static constexpr double scale = 1.0;
  static inline vec<double> base(vec<double> x) { return vexp(x); }
};

// log(1 + y) for y in [0, 1], as 2 artanh(y / (2 + y)): no digits are lost where y is small.
inline vec<float> log1p_unit(vec<float> y) {
  const vec<float> s = y / (y + 2.0f), q = s * s;
  vec<float> p = splat(2.8011987e-1f) * q + 2.8001805e-1f;
  p = p * q + 4.0021527e-1f;
  p = p * q + 6.6666416e-1f;
  return (p * q + 2.0f) * s;
}
inline vec<double> log1p_unit(vec<double> y) {
  for (int i = 0; i < width<double>; ++i) y[i] = std::log1p(y[i]);
  return y;
}

// -|x|, and |x| with the sign of y, by the bit that holds the sign.
template <class T> inline vec<T> minus_abs(vec<T> x) {
  typedef typename Vec<T>::mask mask;
  return (vec<T>)((mask)x | (mask)-vec<T>{});
}
template <class T> inline vec<T> copy_sign(vec<T> x, vec<T> y) {
  typedef typename Vec<T>::mask mask;
  const mask sign = (mask)-vec<T>{};
  return (vec<T>)(((mask)x & ~sign) | ((mask)y & sign));
}

// exp(-|x|).
inline vec<float> exp_minus_abs(vec<float> x) {
  x = at_least(splat(-87.0f), minus_abs<float>(x));
  const vec<float> rounded = x * 1.44269504f + kRound, n = rounded - kRound;
  return power_of_two(rounded, (x * 1.44269504f - n) + x * 1.925963e-8f);
}
inline vec<double> exp_minus_abs(vec<double> x) { return vexp(minus_abs<double>(x)); }

// log(1 + exp(x)).
template <class V> inline V softplus(V x) { return (x < 0 ? x - x : x) + log1p_unit(exp_minus_abs(x)); }

// 1 / (1 + exp(-x)): the derivative of softplus.
template <class V> inline V logistic(V x) {
  const V e = exp_minus_abs(x);
  return (x < 0 ? e : e - e + 1) / (e + 1);
}

// tanh, as (1 - e) / (1 + e) with e = exp(-2 |x|): e - 1 is taken from a polynomial for 2^r - 1, so that no digits are
// lost where x is small.
inline vec<float> vtanh(vec<float> x) {
  typedef Vec<float>::mask mask;
  const vec<float> y = at_least(splat(-40.0f), minus_abs<float>(x + x));
  const vec<float> rounded = y * 1.44269504f + kRound, n = rounded - kRound;
  const vec<float> r = (y * 1.44269504f - n) + y * 1.925963e-8f, r2 = r * r;
  const vec<float> low = r * 2.40226492e-1f + 6.93147182e-1f, middle = r * 9.61823761e-3f + 5.55035733e-2f;
  const vec<float> less = (((r * 1.54035122e-4f + 1.33907353e-3f) * r2 + middle) * r2 + low) * r;
  const vec<float> scale = (vec<float>)(((mask)rounded << 23) + 0x3F800000);  // 2^n
  const vec<float> moved = scale * less + (scale - 1.0f);
  return copy_sign<float>(moved / (moved + 2.0f), x);
}
inline vec<double> vtanh(vec<double> x) {
  for (int i = 0; i < width<double>; ++i) x[i] = std::tanh(x[i]);
  return x;
}

}  // namespace scanweave
