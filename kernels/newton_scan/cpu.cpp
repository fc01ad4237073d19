// newton_scan on the CPU: the recurrence itself, vectors over channels, which one thread takes through time in one pass.
//
// The backward pass reads the states that the forward pass kept. How work is cut depends on the shape alone, and sums
// over the batch are added in its order: the number of threads changes no bit.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "activations.h"
#include "parallel.h"

namespace scanweave {
namespace {

constexpr int64_t kGrain = 1024;  // steps times channels that are worth waking a thread for
constexpr int kGates = 3, kMostStates = 2, kMostWeights = 5;
constexpr int64_t kPartial = 64;  // steps whose sums are added by themselves first
constexpr int kNoMemory = 2;

template <class T> inline vec<T> read(const T* p, int lanes) {
  return lanes == width<T> ? load(p) : load_part(p, lanes);
}
template <class T> inline void write(T* p, vec<T> v, int lanes) {
  if (lanes == width<T>) store(p, v);
  else store_part(p, v, lanes);
}

// Gates z, q, n; state h.
template <class T> struct Gru {
  using V = vec<T>;
  static constexpr int states = 1, weights = 3;

  V z, q, n;
  Gru(const V* a, const V* r, const V* s)
      : z(logistic<V>(a[0] + r[0] * s[0])), q(logistic<V>(a[1] + r[1] * s[0])), n(vtanh(a[2] + r[2] * (q * s[0]))) {}
  void apply(V* s) const { s[0] += z * (n - s[0]); }

  // From the gradient of the state after the step, in `g`, to that of the state before, in its place; `da` receives the
  // gates' gradients, and those of the weights are added to `dr`.
  void pull(const V* r, const V* s, V* g, V* da, V* dr) const {
    const V h = s[0], through = g[0] * z * (T(1) - n * n);
    da[0] = g[0] * (n - h) * z * (T(1) - z);
    da[1] = through * r[2] * h * q * (T(1) - q);
    da[2] = through;
    dr[0] += da[0] * h, dr[1] += da[1] * h, dr[2] += da[2] * (q * h);
    g[0] = g[0] * (T(1) - z) + da[0] * r[0] + da[1] * r[1] + da[2] * r[2] * q;
  }
};

// Gates f, g, o; weights of the three, then the peepholes of f and o; state h, c.
template <class T> struct Lstm {
  using V = vec<T>;
  static constexpr int states = 2, weights = 5;

  V f, g, c, o, top;
  Lstm(const V* a, const V* r, const V* s)
      : f(logistic<V>(a[0] + r[0] * s[0] + r[3] * s[1])), g(vtanh(a[1] + r[1] * s[0])), c(g + f * (s[1] - g)),
        o(logistic<V>(a[2] + r[2] * s[0] + r[4] * c)), top(vtanh(c)) {}
  void apply(V* s) const { s[0] = o * top, s[1] = c; }

  void pull(const V* r, const V* s, V* d, V* da, V* dr) const {
    da[2] = d[0] * top * o * (T(1) - o);
    const V through = d[1] + d[0] * o * (T(1) - top * top) + da[2] * r[4];
    da[0] = through * (s[1] - g) * f * (T(1) - f);
    da[1] = through * (T(1) - f) * (T(1) - g * g);
    dr[0] += da[0] * s[0], dr[1] += da[1] * s[0], dr[2] += da[2] * s[0], dr[3] += da[0] * s[1], dr[4] += da[2] * c;
    d[0] = da[0] * r[0] + da[1] * r[1] + da[2] * r[2];
    d[1] = through * f + da[0] * r[3];
  }
};

// wx (B, L, 3, C) with strides over batch and time; the rest is contiguous, null where absent.
template <class T> struct Problem {
  const T* wx;
  int64_t wx_batch, wx_step;
  const T *r, *bias, *initial;
  const uint8_t* reset;
  int64_t batch, length, channels;

  int64_t slices() const { return (channels + width<T> - 1) / width<T>; }
  bool starts(int64_t b, int64_t t) const { return reset && reset[b * length + t]; }
};

// A vector of channels of one batch entry, with their parameters.
template <class T, class Cell> struct Slice {
  using V = vec<T>;
  const Problem<T>& p;
  int64_t b, first;
  int lanes;
  V r[kMostWeights], bias[kGates];

  Slice(const Problem<T>& problem, int64_t item)
      : p(problem), b(item / p.slices()), first(item % p.slices() * width<T>),
        lanes(static_cast<int>(std::min<int64_t>(width<T>, p.channels - first))) {
    for (int i = 0; i < Cell::weights; ++i) r[i] = row(p.r, i);
    for (int i = 0; i < kGates; ++i) bias[i] = p.bias ? row(p.bias, i) : V{};
  }
  V row(const T* from, int64_t i) const { return read(from + i * p.channels + first, lanes); }
  void put(T* to, int64_t i, V v) const { write(to + i * p.channels + first, v, lanes); }
  void gates(int64_t t, V* a) const {
    for (int i = 0; i < kGates; ++i) a[i] = row(p.wx + b * p.wx_batch + t * p.wx_step, i) + bias[i];
  }
  // The state before step t, from the states after each step.
  void before(int64_t t, const T* states, V* s) const {
    const T* from = t ? states + (b * p.length + t - 1) * Cell::states * p.channels
                      : p.initial + b * Cell::states * p.channels;
    const bool fresh = p.starts(b, t);
    for (int i = 0; i < Cell::states; ++i) s[i] = fresh ? V{} : row(from, i);
  }
};

template <class T, class Cell> void forward_slice(const Slice<T, Cell>& s, T* y, T* last, T* states) {
  const Problem<T>& p = s.p;
  vec<T> state[kMostStates], a[kGates];
  for (int i = 0; i < Cell::states; ++i) state[i] = s.row(p.initial, s.b * Cell::states + i);
  for (int64_t t = 0; t < p.length; ++t) {
    if (p.starts(s.b, t))
      for (int i = 0; i < Cell::states; ++i) state[i] = vec<T>{};
    s.gates(t, a);
    Cell(a, s.r, state).apply(state);
    const int64_t at = s.b * p.length + t;
    s.put(y, at, state[0]);
    if (states)
      for (int i = 0; i < Cell::states; ++i) s.put(states, at * Cell::states + i, state[i]);
  }
  for (int i = 0; i < Cell::states; ++i) s.put(last, s.b * Cell::states + i, state[i]);
}

template <class T> struct Incoming {
  const T* dy;
  int64_t dy_batch, dy_step;
  const T* dlast;
};
// Those of r and bias have room for each batch entry's own: (B, weights, C) and (B, 3, C).
template <class T> struct Gradients {
  T *wx, *r, *bias, *initial;
};

template <class T, class Cell>
void backward_slice(const Slice<T, Cell>& s, const T* states, const Incoming<T>& in, const Gradients<T>& d) {
  using V = vec<T>;
  const Problem<T>& p = s.p;
  V grad[kMostStates] = {}, dr[kMostWeights] = {}, dbias[kGates] = {};
  if (in.dlast)
    for (int i = 0; i < Cell::states; ++i) grad[i] = s.row(in.dlast, s.b * Cell::states + i);
  for (int64_t stop = p.length; stop > 0; stop -= kPartial) {
    V part[kMostWeights] = {}, part_bias[kGates] = {};
    for (int64_t t = stop - 1; t >= std::max<int64_t>(0, stop - kPartial); --t) {
      V a[kGates], state[kMostStates], da[kGates];
      s.gates(t, a);
      s.before(t, states, state);
      if (in.dy) grad[0] += s.row(in.dy + s.b * in.dy_batch + t * in.dy_step, 0);
      Cell(a, s.r, state).pull(s.r, state, grad, da, part);
      for (int i = 0; i < kGates; ++i) {
        s.put(d.wx, (s.b * p.length + t) * kGates + i, da[i]);
        part_bias[i] += da[i];
      }
      if (p.starts(s.b, t))
        for (int i = 0; i < Cell::states; ++i) grad[i] = V{};
    }
    for (int i = 0; i < Cell::weights; ++i) dr[i] += part[i];
    for (int i = 0; i < kGates; ++i) dbias[i] += part_bias[i];
  }
  for (int i = 0; i < Cell::states; ++i) s.put(d.initial, s.b * Cell::states + i, grad[i]);
  for (int i = 0; i < Cell::weights; ++i) s.put(d.r, s.b * Cell::weights + i, dr[i]);
  for (int i = 0; i < kGates; ++i) s.put(d.bias, s.b * kGates + i, dbias[i]);
}

template <class T, class Cell, class Body> void over_slices(const Problem<T>& p, int threads, const Body& body) {
  parallel_for(p.batch * p.slices(), threads, kGrain / std::max<int64_t>(1, p.length * width<T>) + 1,
               [&](int64_t item) { body(Slice<T, Cell>(p, item)); });
}

template <class T, class Cell> int forward(const Problem<T>& p, T* y, T* last, T* states, int threads) {
  over_slices<T, Cell>(p, threads, [&](const Slice<T, Cell>& s) { forward_slice(s, y, last, states); });
  return 0;
}

template <class T, class Cell>
int backward(const Problem<T>& p, const T* states, const Incoming<T>& in, const Gradients<T>& d, int threads) {
  const int64_t weights = Cell::weights * p.channels, gates = kGates * p.channels;
  const std::unique_ptr<T[]> parts(new (std::nothrow) T[p.batch * (weights + gates)]);
  if (!parts) return kNoMemory;
  const Gradients<T> own{d.wx, parts.get(), parts.get() + p.batch * weights, d.initial};
  over_slices<T, Cell>(p, threads, [&](const Slice<T, Cell>& s) { backward_slice(s, states, in, own); });
  add_up(own.r, p.batch, weights, d.r, threads);
  add_up(own.bias, p.batch, gates, d.bias, threads);
  return 0;
}

}  // namespace
}  // namespace scanweave

// Strides count numbers. wx's last two axes and all other tensors but dy, whose channels lie side by side, are
// contiguous; null stands for an absent one. Returns 0, or 2 where memory ran out.
#define SCANWEAVE_NEWTON(CELL, NAME, T)                                                                            \
  SCANWEAVE_EXPORT int scanweave_newton_scan_forward_##NAME(                                                       \
      const T* wx, int64_t wx_batch, int64_t wx_step, const T* r, const T* bias, const T* initial,                 \
      const uint8_t* reset, int64_t batch, int64_t length, int64_t channels, T* y, T* last, T* states,             \
      int threads) {                                                                                               \
    return scanweave::forward<T, scanweave::CELL<T>>(                                                              \
        {wx, wx_batch, wx_step, r, bias, initial, reset, batch, length, channels}, y, last, states, threads);      \
  }                                                                                                                \
  SCANWEAVE_EXPORT int scanweave_newton_scan_backward_##NAME(                                                      \
      const T* wx, int64_t wx_batch, int64_t wx_step, const T* r, const T* bias, const T* initial,                 \
      const uint8_t* reset, int64_t batch, int64_t length, int64_t channels, const T* states, const T* dy,         \
      int64_t dy_batch, int64_t dy_step, const T* dlast, T* dwx, T* dr, T* dbias, T* dinitial, int threads) {      \
    return scanweave::backward<T, scanweave::CELL<T>>(                                                             \
        {wx, wx_batch, wx_step, r, bias, initial, reset, batch, length, channels}, states,                         \
        {dy, dy_batch, dy_step, dlast}, {dwx, dr, dbias, dinitial}, threads);                                      \
  }

SCANWEAVE_NEWTON(Gru, gru_f32, float)
SCANWEAVE_NEWTON(Gru, gru_f64, double)
SCANWEAVE_NEWTON(Lstm, lstm_f32, float)
SCANWEAVE_NEWTON(Lstm, lstm_f64, double)
