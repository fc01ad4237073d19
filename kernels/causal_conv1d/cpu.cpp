// causal_conv1d on the CPU: whole rows of channels, one step after the other, so that memory is read in its order.
//
// Work is cut into segments of time; each sums the gradients of the taps for itself, and these are added in their order.
// How work is cut depends on the shape alone: the number of threads changes no bit of any result.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "activations.h"
#include "parallel.h"
#include "rows.h"
#include "simd.h"

namespace scanweave {
namespace {

constexpr int64_t kGrain = 16384;   // numbers that are worth waking a thread for
constexpr int64_t kParts = 16;      // segments that the whole work is cut into
constexpr int64_t kLeastSteps = 32; // of a segment
constexpr int64_t kStrip = 256;     // channels that are taken through a segment together: their rows stay in L1
constexpr int kUsual = 4;           // taps of nearly all such convolutions
constexpr int kNoMemory = 2;

template <class T> struct Problem {
  Rows<T> x;
  const T *weight, *bias, *initial;
  const uint8_t* reset;
  int64_t batch, length, channels, taps;
  bool silu;

  int64_t padded() const { return (channels + width<T> - 1) / width<T> * width<T>; }
  int64_t per_entry() const {
    return std::max<int64_t>(1, std::min((kParts + batch - 1) / batch, length / kLeastSteps));
  }
  // The input at a step, which may lie before the first; null for zeros.
  const T* row(int64_t b, int64_t t) const {
    if (t >= 0) return x.at(b, t);
    return initial ? initial + (b * (taps - 1) + taps - 1 + t) * channels : nullptr;
  }
  // How many earlier inputs step t sees; a step behind the last is asked for by the state that is left.
  int64_t reach(int64_t b, int64_t t) const {
    int64_t n = 0;
    for (; n < taps - 1; ++n) {
      const int64_t at = t - n;
      if ((at >= 0 && at < length && reset && reset[b * length + at]) || (at <= 0 && !initial)) break;
    }
    return n;
  }
};

// Some steps of one batch entry.
template <class T> struct Segment {
  int64_t b, begin, end;

  Segment(const Problem<T>& p, int64_t item) {
    const int64_t count = p.per_entry(), k = item % count;
    b = item / count, begin = p.length * k / count, end = p.length * (k + 1) / count;
  }
};

// The filters as [tap][channel], the newest input's first, with zeros behind the last channel.
template <class T> void lay_out(const Problem<T>& p, T* to) {
  for (int64_t j = 0; j < p.taps; ++j)
    for (int64_t c = 0; c < p.padded(); ++c)
      to[j * p.padded() + c] = c < p.channels ? p.weight[c * p.taps + p.taps - 1 - j] : T(0);
}

template <class T> inline int lanes_at(const Problem<T>& p, int64_t c) {
  return static_cast<int>(std::min<int64_t>(width<T>, p.channels - c));
}

// What the taps of one step meet, newest first. N taps where their number is known to the compiler, else 0.
template <class T, int N> struct Seen {
  static constexpr int64_t kRoom = N ? N : 1;
  const T* fixed[kRoom];
  std::unique_ptr<const T*[]> more;
  int64_t count;

  Seen(const Problem<T>& p, int64_t b, int64_t t, int64_t reach) : count(N ? N : reach + 1) {
    if (!N) more.reset(new const T*[count]);
    const T** const to = N ? fixed : more.get();
    for (int64_t j = 0; j < count; ++j) to[j] = p.row(b, t - j);
  }
  const T* operator[](int64_t j) const { return N ? fixed[j] : more[j]; }
};

template <class T, int N>
inline vec<T> convolve(const Problem<T>& p, const T* filters, int64_t padded, const Seen<T, N>& seen, int64_t c,
                       int lanes) {
  vec<T> sum = p.bias ? read(p.bias + c, lanes) : vec<T>{};
  for (int64_t j = 0; j < (N ? N : seen.count); ++j) sum += load(filters + j * padded + c) * read(seen[j] + c, lanes);
  return sum;
}

// The gradient of the sum from that of the output.
template <class T> inline vec<T> slope(const Problem<T>& p, vec<T> sum, vec<T> dy) {
  if (!p.silu) return dy;
  const vec<T> gate = logistic(sum);
  return dy * gate * (sum - sum * gate + T(1));
}

template <class T, int N>
void forward_step(const Problem<T>& p, const T* filters, int64_t b, int64_t t, int64_t reach, T* out) {
  const Seen<T, N> seen(p, b, t, reach);
  const int64_t padded = p.padded();
  for (int64_t c = 0; c < p.channels; c += width<T>) {
    const int lanes = lanes_at(p, c);
    vec<T> sum = convolve<T, N>(p, filters, padded, seen, c, lanes);
    if (p.silu) sum *= logistic(sum);
    write(out + c, sum, lanes);
  }
}

template <class T> void forward_segment(const Problem<T>& p, const Segment<T>& s, const T* filters, T* y) {
  for (int64_t t = s.begin; t < s.end; ++t) {
    const int64_t reach = p.reach(s.b, t);
    T* const out = y + (s.b * p.length + t) * p.channels;
    if (reach + 1 == kUsual) forward_step<T, kUsual>(p, filters, s.b, t, reach, out);
    else forward_step<T, 0>(p, filters, s.b, t, reach, out);
  }
}

// The last inputs of the sequence that is running, zeros where there were none.
template <class T> void keep_last(const Problem<T>& p, int64_t b, T* last) {
  const int64_t reach = p.reach(b, p.length);
  for (int64_t n = 0; n < p.taps - 1; ++n) {
    T* const to = last + (b * (p.taps - 1) + p.taps - 2 - n) * p.channels;
    if (n < reach) std::copy_n(p.row(b, p.length - 1 - n), p.channels, to);
    else std::fill_n(to, p.channels, T(0));
  }
}

// Where the gradients go; `filters` has room for each segment's own, [tap][channel], the bias behind them.
template <class T> struct Gradients {
  T *x, *filters, *initial;

  // The gradient of the input at step t; null where nobody asks.
  T* row(const Problem<T>& p, const Segment<T>& s, int64_t t) const {
    if (t >= 0) return t >= s.begin && t < s.end ? x + (s.b * p.length + t) * p.channels : nullptr;
    return initial && s.begin == 0 ? initial + (s.b * (p.taps - 1) + p.taps - 1 + t) * p.channels : nullptr;
  }
};

// What step t hands back to the inputs it saw, for the channels from `first` to `past`; its part of the filters' gradients
// where the step is the segment's own.
template <class T>
void backward_step(const Problem<T>& p, const Segment<T>& s, const T* filters, Rows<T> dy, const Gradients<T>& d, T* own,
                   int64_t t, int64_t first, int64_t past) {
  const int64_t padded = p.padded();
  const Seen<T, 0> seen(p, s.b, t, p.reach(s.b, t));
  const bool counts = t < s.end;
  for (int64_t c = first; c < past; c += width<T>) {
    const int lanes = lanes_at(p, c);
    const vec<T> g = slope(p, convolve<T, 0>(p, filters, padded, seen, c, lanes), read(dy.at(s.b, t) + c, lanes));
    for (int64_t j = 0; j < seen.count; ++j) {
      if (T* const to = d.row(p, s, t - j)) write(to + c, read(to + c, lanes) + g * load(filters + j * padded + c), lanes);
      T* const sum = own + j * padded + c;
      if (counts) store(sum, load(sum) + g * read(seen[j] + c, lanes));
    }
    if (counts) store(own + p.taps * padded + c, load(own + p.taps * padded + c) + g);
  }
}

// The same for all steps of a segment in which no sequence starts, with kUsual taps, for the vector of channels at c: the
// inputs that a step sees and the sums that it adds to stay in registers.
template <class T>
void backward_usual(const Problem<T>& p, const Segment<T>& s, const T* filters, Rows<T> dy, const Gradients<T>& d, T* own,
                    int64_t end, int64_t c) {
  constexpr int N = kUsual;
  const int64_t padded = p.padded();
  const int lanes = lanes_at(p, c);
  const vec<T> bias = p.bias ? read(p.bias + c, lanes) : vec<T>{};
  vec<T> w[N], dw[N], x[N], dx[N], db{};  // x[j] and dx[j] belong to the input j steps ago
  for (int j = 0; j < N; ++j) {
    const T* const row = j ? p.row(s.b, s.begin - j) : nullptr;
    w[j] = load(filters + j * padded + c), x[j] = row ? read(row + c, lanes) : vec<T>{}, dw[j] = dx[j] = vec<T>{};
  }
  const auto put = [&](int64_t t, vec<T> g) {
    if (T* const to = d.row(p, s, t)) write(to + c, g, lanes);
  };
  for (int64_t t = s.begin; t < end; ++t) {
    x[0] = read(p.x.at(s.b, t) + c, lanes);
    vec<T> sum = bias;
    for (int j = 0; j < N; ++j) sum += w[j] * x[j];
    const vec<T> g = slope(p, sum, read(dy.at(s.b, t) + c, lanes));
    if (t < s.end) {
      for (int j = 0; j < N; ++j) dw[j] += g * x[j];
      db += g;
    }
    put(t - N + 1, dx[N - 1] + g * w[N - 1]);
    for (int j = N - 1; j > 0; --j) dx[j] = (j > 1 ? dx[j - 1] : vec<T>{}) + g * w[j - 1], x[j] = x[j - 1];
  }
  for (int j = 1; j < N && end == p.length; ++j) put(end - j, dx[j]);
  for (int j = 0; j < N; ++j) store(own + j * padded + c, dw[j]);
  store(own + N * padded + c, db);
}

template <class T>
void backward_segment(const Problem<T>& p, const Segment<T>& s, const T* filters, Rows<T> dy, const T* dlast,
                      const Gradients<T>& d, T* own) {
  std::fill_n(own, (p.taps + 1) * p.padded(), T(0));
  std::fill_n(d.x + (s.b * p.length + s.begin) * p.channels, (s.end - s.begin) * p.channels, T(0));
  if (d.initial && s.begin == 0)
    std::fill_n(d.initial + s.b * (p.taps - 1) * p.channels, (p.taps - 1) * p.channels, T(0));
  // Steps behind the segment saw its last inputs.
  const int64_t end = dy.data ? std::min(p.length, s.end + p.taps - 1) : s.begin;
  if (p.taps == kUsual && !p.reset && dy.data) {
    for (int64_t c = 0; c < p.channels; c += width<T>) backward_usual(p, s, filters, dy, d, own, end, c);
  } else {
    for (int64_t first = 0; first < p.channels; first += kStrip)
      for (int64_t t = s.begin; t < end; ++t)
        backward_step(p, s, filters, dy, d, own, t, first, std::min(p.channels, first + kStrip));
  }
  const int64_t kept = dlast ? p.reach(s.b, p.length) : 0;
  for (int64_t n = 0; n < kept; ++n) {
    T* const to = d.row(p, s, p.length - 1 - n);
    const T* const from = dlast + (s.b * (p.taps - 1) + p.taps - 2 - n) * p.channels;
    for (int64_t c = 0; to && c < p.channels; ++c) to[c] += from[c];
  }
}

template <class T> int64_t grain(const Problem<T>& p) {
  const int64_t work = p.length / p.per_entry() * p.channels;
  return kGrain / std::max<int64_t>(1, work) + 1;
}

template <class T> int forward(const Problem<T>& p, T* y, T* last, int threads) {
  const std::unique_ptr<T[]> filters(new (std::nothrow) T[p.taps * p.padded()]);
  if (!filters) return kNoMemory;
  lay_out(p, filters.get());
  parallel_for(p.batch * p.per_entry(), threads, grain(p), [&](int64_t item) {
    forward_segment(p, Segment<T>(p, item), filters.get(), y);
  });
  for (int64_t b = 0; b < p.batch; ++b) keep_last(p, b, last);
  return 0;
}

template <class T>
int backward(const Problem<T>& p, Rows<T> dy, const T* dlast, T* dx, T* dweight, T* dbias, T* dinitial, int threads) {
  const int64_t items = p.batch * p.per_entry(), size = (p.taps + 1) * p.padded(), padded = p.padded();
  const std::unique_ptr<T[]> scratch(new (std::nothrow) T[p.taps * padded + (items + 1) * size]);
  if (!scratch) return kNoMemory;
  T *const filters = scratch.get(), *const parts = filters + p.taps * padded, *const total = parts + items * size;
  lay_out(p, filters);
  const Gradients<T> d{dx, parts, dinitial};
  parallel_for(items, threads, grain(p), [&](int64_t item) {
    backward_segment(p, Segment<T>(p, item), filters, dy, dlast, d, parts + item * size);
  });
  add_up(parts, items, size, total, threads);
  for (int64_t c = 0; c < p.channels; ++c)
    for (int64_t j = 0; j < p.taps; ++j) dweight[c * p.taps + p.taps - 1 - j] = total[j * padded + c];
  if (dbias) std::copy_n(total + p.taps * padded, p.channels, dbias);
  return 0;
}

}  // namespace
}  // namespace scanweave

// Strides count numbers. Channels lie side by side; filters (C, W), states (B, W - 1, C) and all outputs are contiguous.
// Null stands for an absent tensor. Returns 0, or 2 where memory ran out.
#define SCANWEAVE_CONV_PROBLEM(T)                                                                                  \
  const T *x, int64_t x_batch, int64_t x_step, const T *weight, const T *bias, const T *initial,                   \
      const uint8_t *reset, int64_t batch, int64_t length, int64_t channels, int64_t taps, int silu
#define SCANWEAVE_CONV_PACKED \
  {{x, x_batch, x_step}, weight, bias, initial, reset, batch, length, channels, taps, silu != 0}
#define SCANWEAVE_CONV(NAME, T)                                                                                    \
  SCANWEAVE_EXPORT int scanweave_causal_conv1d_forward_##NAME(SCANWEAVE_CONV_PROBLEM(T), T* y, T* last,            \
                                                              int threads) {                                       \
    return scanweave::forward<T>(SCANWEAVE_CONV_PACKED, y, last, threads);                                         \
  }                                                                                                                \
  SCANWEAVE_EXPORT int scanweave_causal_conv1d_backward_##NAME(                                                    \
      SCANWEAVE_CONV_PROBLEM(T), const T* dy, int64_t dy_batch, int64_t dy_step, const T* dlast, T* dx, T* dweight, \
      T* dbias, T* dinitial, int threads) {                                                                        \
    return scanweave::backward<T>(SCANWEAVE_CONV_PACKED, {dy, dy_batch, dy_step}, dlast, dx, dweight, dbias,       \
                                  dinitial, threads);                                                              \
  }

SCANWEAVE_CONV(f32, float)
SCANWEAVE_CONV(f64, double)
