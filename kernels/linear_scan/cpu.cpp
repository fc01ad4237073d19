// linear_scan on the CPU: one row of channels after the other, the state in the row just written (still in L1).
#include <algorithm>
#include <cstdint>

#include "parallel.h"
#include "simd.h"

namespace scanweave {
namespace {

constexpr int64_t kRow = 1024;   // scalars of a row taken at once: four such rows of float fill half of L1
constexpr int64_t kPiece = 64;   // rows are cut at multiples of this many scalars
constexpr int64_t kGrain = 16384;  // steps times scalars that are worth waking a thread for
constexpr int kFlush = 128;      // steps summed in T before they are added to a double

template <class T> struct Real {
  typedef T scalar;
  static constexpr int parts = 1;
  static vec<T> product(vec<T> a, vec<T> h) { return a * h; }
  static vec<T> conj_product(vec<T> a, vec<T> h) { return a * h; }
  static void product(const T* a, const T* h, T* out) { *out = *a * *h; }
  static void conj_product(const T* a, const T* h, T* out) { *out = *a * *h; }
};

// (re, im) pairs side by side, as torch and std::complex keep them.
template <class T> struct Complex {
  typedef T scalar;
  static constexpr int parts = 2;
  static vec<T> product(vec<T> a, vec<T> h) { return even_lanes<T>(a) * h + odd_lanes<T>(a) * turned(h); }
  static vec<T> conj_product(vec<T> a, vec<T> h) { return even_lanes<T>(a) * h - odd_lanes<T>(a) * turned(h); }
  static void product(const T* a, const T* h, T* out) {
    const T re = a[0] * h[0] - a[1] * h[1], im = a[0] * h[1] + a[1] * h[0];
    out[0] = re, out[1] = im;
  }
  static void conj_product(const T* a, const T* h, T* out) {
    const T re = a[0] * h[0] + a[1] * h[1], im = a[0] * h[1] - a[1] * h[0];
    out[0] = re, out[1] = im;
  }

 private:
  static vec<T> turned(vec<T> h) {  // i h
    vec<T> sign;
    for (int i = 0; i < width<T>; ++i) sign[i] = i % 2 ? T(1) : T(-1);
    return swap_pairs<T>(h) * sign;
  }
};

template <class T> bool finite(const T* x, int64_t n) {
  bool all = true;
  for (int64_t i = 0; i < n; ++i) all &= x[i] - x[i] == T(0);
  return all;
}

// A sequence tensor (B, L, C): strides in scalars, channels side by side.
template <class T> struct Rows {
  T* data;
  int64_t batch, step;
  T* at(int64_t b, int64_t t) const { return data + b * batch + t * step; }
};

struct Extent {
  int64_t batch, length, row;  // row: scalars per step
  bool reverse;
  int64_t time(int64_t step) const { return reverse ? length - 1 - step : step; }
};

// How rows are cut so that every thread has as much as the next, and no more than L1 holds.
inline int64_t pieces(const Extent& e, int threads) {
  int64_t n = std::max<int64_t>(1, (e.row + kRow - 1) / kRow);
  while (e.batch * n % threads && e.batch * n < 4 * threads && e.row / (n + 1) >= kPiece) ++n;
  return n;
}

// Calls body(b, begin, size) for every piece of every batch's row.
template <class Body> void over_pieces(const Extent& e, int threads, const Body& body) {
  const int64_t n = pieces(e, threads);
  const int64_t size = std::min((e.row + n - 1) / n + kPiece - 1, kRow) / kPiece * kPiece;
  const int64_t count = (e.row + size - 1) / size;
  const int64_t grain = kGrain / std::max<int64_t>(1, e.length * std::min(size, e.row)) + 1;
  parallel_for(e.batch * count, threads, grain, [&](int64_t i) {
    const int64_t begin = i % count * size;
    body(i / count, begin, std::min(size, e.row - begin));
  });
}

template <class K, class T = typename K::scalar>
void step_forward(const T* a, const T* b, const T* before, T* y, int64_t n) {
  int64_t i = 0;
  for (; i + width<T> <= n; i += width<T>) store(y + i, K::product(load(a + i), load(before + i)) + load(b + i));
  for (; i < n; i += K::parts) {
    T carried[2];
    K::product(a + i, before + i, carried);
    for (int p = 0; p < K::parts; ++p) y[i + p] = carried[p] + b[i + p];
  }
}

// g = dy + carry; da = g conj(before), written or (Sum) added; carry = conj(a) g.
template <class K, bool Sum, class T = typename K::scalar>
void step_backward(const T* a, const T* before, const T* dy, T* da, T* db, T* carry, int64_t n) {
  int64_t i = 0;
  for (; i + width<T> <= n; i += width<T>) {
    const vec<T> g = load(dy + i) + load(carry + i);
    const vec<T> d = K::conj_product(load(before + i), g);
    store(db + i, g);
    store(da + i, Sum ? load(da + i) + d : d);
    store(carry + i, K::conj_product(load(a + i), g));
  }
  for (; i < n; i += K::parts) {
    T g[2], d[2];
    for (int p = 0; p < K::parts; ++p) db[i + p] = g[p] = dy[i + p] + carry[i + p];
    K::conj_product(before + i, g, d);
    for (int p = 0; p < K::parts; ++p) da[i + p] = Sum ? da[i + p] + d[p] : d[p];
    K::conj_product(a + i, g, carry + i);
  }
}

// Returns whether every state that was carried over was finite.
template <class K, class T = typename K::scalar>
bool forward(const Extent& e, Rows<const T> a, Rows<const T> b, const T* initial, const uint8_t* reset, T* y, T* last,
             int threads) {
  const Rows<T> out{y, e.length * e.row, e.row};
  const T zeros[kRow] = {};
  bool all_finite = true;
  over_pieces(e, threads, [&](int64_t batch, int64_t begin, int64_t n) {
    const T* before = initial ? initial + batch * e.row + begin : zeros;
    bool good = true;
    for (int64_t s = 0; s < e.length; ++s) {
      const int64_t t = e.time(s);
      T* now = out.at(batch, t) + begin;
      if (reset && reset[batch * e.length + t]) {
        good &= finite(before, n);
        std::copy_n(b.at(batch, t) + begin, n, now);
      } else {
        step_forward<K>(a.at(batch, t) + begin, b.at(batch, t) + begin, before, now, n);
      }
      before = now;
    }
    std::copy_n(before, n, last + batch * e.row + begin);
    if (!good || !finite(before, n)) {
#pragma omp atomic write
      all_finite = false;
    }
  });
  return all_finite;
}

// Sums a decay's gradient over time: short runs in T, the runs in double.
template <class T> struct TimeSum {
  T run[kRow] = {};
  double total[kRow] = {};
  void flush(int64_t n) {
    for (int64_t i = 0; i < n; ++i) total[i] += static_cast<double>(run[i]), run[i] = T(0);
  }
};

// `a_sum`: a is constant over time and da is (B, 1, C); else da is (B, L, C).
template <class K, class T = typename K::scalar>
void backward(const Extent& e, Rows<const T> a, const T* y, const T* initial, const uint8_t* reset, Rows<const T> dy,
              const T* dlast, bool a_sum, T* da, T* db, T* dinitial, int threads) {
  const Rows<const T> states{y, e.length * e.row, e.row};
  const Rows<T> out_a{da, e.length * e.row, e.row}, out_b{db, e.length * e.row, e.row};
  const T zeros[kRow] = {};
  over_pieces(e, threads, [&](int64_t batch, int64_t begin, int64_t n) {
    T carry[kRow] = {};
    if (dlast) std::copy_n(dlast + batch * e.row + begin, n, carry);
    TimeSum<T> sum;
    for (int64_t s = e.length - 1; s >= 0; --s) {
      const int64_t t = e.time(s), at = batch * e.row + begin;
      const bool start = reset && reset[batch * e.length + t];
      const T* before = s ? states.at(batch, e.time(s - 1)) + begin : initial ? initial + at : zeros;
      const T* into = dy.data ? dy.at(batch, t) + begin : zeros;
      T* const g = out_b.at(batch, t) + begin;
      if (start) {
        for (int64_t i = 0; i < n; ++i) g[i] = into[i] + carry[i];
        if (!a_sum) std::fill_n(out_a.at(batch, t) + begin, n, T(0));
        std::fill_n(carry, n, T(0));
      } else if (a_sum) {
        step_backward<K, true>(a.at(batch, t) + begin, before, into, sum.run, g, carry, n);
      } else {
        step_backward<K, false>(a.at(batch, t) + begin, before, into, out_a.at(batch, t) + begin, g, carry, n);
      }
      if (a_sum && s % kFlush == 0) sum.flush(n);
    }
    std::copy_n(carry, n, dinitial + batch * e.row + begin);
    if (a_sum) std::transform(sum.total, sum.total + n, da + batch * e.row + begin, [](double x) { return T(x); });
  });
}

}  // namespace
}  // namespace scanweave

// Strides count elements of the tensor, lengths too; the channels of every tensor lie side by side, and y, reset, the
// states and all outputs are contiguous. Null stands for an absent tensor. Forward returns 1 where a carried state was
// not finite, else 0.
#define SCANWEAVE_LINEAR_SCAN(NAME, KIND, T)                                                                           \
  SCANWEAVE_EXPORT int scanweave_linear_scan_forward_##NAME(                                                           \
      const T* a, int64_t a_batch, int64_t a_step, const T* b, int64_t b_batch, int64_t b_step, const T* initial,      \
      const uint8_t* reset, T* y, T* last, int64_t batch, int64_t length, int64_t channels, int reverse,               \
      int threads) {                                                                                                   \
    using namespace scanweave;                                                                                         \
    constexpr int64_t p = KIND<T>::parts;                                                                              \
    return !forward<KIND<T>>({batch, length, channels * p, reverse != 0}, {a, a_batch * p, a_step * p},                \
                             {b, b_batch * p, b_step * p}, initial, reset, y, last, threads);                          \
  }                                                                                                                    \
  SCANWEAVE_EXPORT int scanweave_linear_scan_backward_##NAME(                                                          \
      const T* a, int64_t a_batch, int64_t a_step, const T* y, const T* initial, const uint8_t* reset, const T* dy,    \
      int64_t dy_batch, int64_t dy_step, const T* dlast, T* da, T* db, T* dinitial, int64_t batch, int64_t length,     \
      int64_t channels, int reverse, int a_sum, int threads) {                                                         \
    using namespace scanweave;                                                                                         \
    constexpr int64_t p = KIND<T>::parts;                                                                              \
    backward<KIND<T>>({batch, length, channels * p, reverse != 0}, {a, a_batch * p, a_step * p}, y, initial, reset,    \
                      {dy, dy_batch * p, dy_step * p}, dlast, a_sum != 0, da, db, dinitial, threads);                  \
    return 0;                                                                                                          \
  }

SCANWEAVE_LINEAR_SCAN(f32, Real, float)
SCANWEAVE_LINEAR_SCAN(f64, Real, double)
SCANWEAVE_LINEAR_SCAN(c64, Complex, float)
SCANWEAVE_LINEAR_SCAN(c128, Complex, double)
