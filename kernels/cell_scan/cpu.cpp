// cell_scan on the CPU: one thread takes some rows of one head through time, the head's recurrent matrix packed in the
// caches and the states in the first-level one.
//
// Rows do not meet and each is summed in one order however the work is cut: the number of threads changes no bit.
#include <atomic>
#include <cstdint>

#include "cells.h"
#include "matrix_state.h"
#include "pages.h"
#include "panels.h"
#include "parallel.h"

namespace scanweave {
namespace {

constexpr int64_t kMostRows = 24;   // that go through time side by side
constexpr int64_t kGrain = 500000;  // products that are worth waking a thread for

template <class T> struct Call {
  Sequence<T> wx;               // (B, L, H, G, D) by its strides
  const T *R, *bias, *initial;  // (H, G, D, D), (H, G, D), (B, S, H, D)
  const uint8_t* reset;         // (B, L)
  int64_t batch, length, heads, width;

  bool starts(int64_t b, int64_t t) const { return reset && reset[b * length + t]; }
  int64_t steps() const { return batch * length * heads; }
  int64_t step(int64_t b, int64_t t, int64_t h) const { return (b * length + t) * heads + h; }
  // Where a state lies: (B, S, H, D).
  int64_t state(int64_t b, int64_t s, int64_t states, int64_t h) const {
    return ((b * states + s) * heads + h) * width;
  }
};

// Some rows of one head.
struct Span {
  int64_t head, first, rows;
};

// Shares out the rows of all heads, those of a head side by side; body(worker, span), one worker a thread. Returns the
// worst status.
template <class Worker, class T, class... A> int over_spans(const Call<T>& c, int64_t gates, int threads, A... more) {
  Worker::begin(c, more...);
  const int64_t rows = c.heads * c.batch, work = c.length * gates * c.width * (c.width + 16);
  const int64_t pieces = std::max<int64_t>(1, std::min<int64_t>({threads, rows, rows * work / kGrain}));
  std::atomic<int> status{0};
  parallel_for(pieces, threads, 1, [&](int64_t piece) {
    Arena arena;
    Worker counting(arena, c, more...);
    if (!arena.reserve()) {
      status = kNoMemory;
      return;
    }
    Worker worker(arena, c, more...);
    const int64_t end = rows * (piece + 1) / pieces;
    for (int64_t at = rows * piece / pieces; at < end;) {
      const int64_t head = at / c.batch, stop = std::min(end, (head + 1) * c.batch), n = stop - at;
      const int64_t parts = (n + kMostRows - 1) / kMostRows;
      for (int64_t i = 0; i < parts; ++i)
        worker.run({head, at + n * i / parts - head * c.batch, n * (i + 1) / parts - n * i / parts});
      at = stop;
    }
  });
  return status;
}

template <class T> inline vec<T> read(const T* p, int64_t lanes) {
  return lanes >= width<T> ? load(p) : load_part(p, static_cast<int>(lanes));
}
template <class T> inline void write(T* p, vec<T> v, int64_t lanes) {
  if (lanes >= width<T>) store(p, v);
  else store_part(p, v, static_cast<int>(lanes));
}

// Rows of the next step lie far from this one's: no prefetcher of the hardware sees them coming. (Beyond the last step
// the address may be foreign; it is not read.)
template <class T> inline void ahead(const T* p) { __builtin_prefetch(p, 0, 2); }
template <class T> inline void ahead(T* p) { __builtin_prefetch(p, 1, 2); }

template <class T, template <class> class CellOn> struct Forward {
  using V = vec<T>;
  using Cell = CellOn<V>;
  static constexpr int W = width<T>, G = Cell::gates, S = Cell::states, P = Cell::planes;
  const Call<T>& c;
  T *y, *last, *trace;
  int64_t D, wide, most;                     // a row of units, padded; a row of gates, padded
  T *packed, *bias, *line, *states, *gates;  // line [W][wide]; states [S][row][wide]; gates [row][most]
  int64_t held = -1, vectors = 0;            // whose matrix is packed, and how

  Forward(Arena& a, const Call<T>& c, T* y, T* last, T* trace)
      : c(c), y(y), last(last), trace(trace), D(c.width), wide(padded(D, W)),
        most(Panels<T>::most_columns(G * wide)) {
    packed = a.take<T>(wide * most), bias = a.take<T>(most), line = a.take<T>(W * wide);
    states = a.take<T>(S * kMostRows * wide), gates = a.take<T>(kMostRows * most);
  }
  static void begin(const Call<T>& c, T* y, T*, T* trace) {
    prefer_large_pages(y, c.steps() * c.width), prefer_large_pages(trace, c.steps() * c.width * P);
  }
  T* state(int64_t s, int64_t row) const { return states + (s * kMostRows + row) * wide; }

  // R's transpose: for each input the outputs of all gates, each gate's padded. Padded inputs are rows of zeros.
  void pack(int64_t head, const Panels<T>& panels) const {
    std::fill_n(packed, panels.height * panels.columns(), T(0));
    std::fill_n(bias, panels.columns(), T(0));
    for (int64_t g = 0; g < G; ++g) {
      const T* const from = c.R + (head * G + g) * D * D;
      if (c.bias) scanweave::pack(c.bias + (head * G + g) * D, D, T(1), bias + g * wide);
      for (int64_t o = 0; o < D; o += W) {
        const int64_t rows = std::min<int64_t>(W, D - o);
        for (int64_t i = 0; i < rows; ++i) scanweave::pack(from + (o + i) * D, D, T(1), line + i * wide);
        transpose<T>(rows, wide, {line, wide}, panels.vector(g * wide + o));
      }
    }
  }

  void run(const Span& span) {
    const Panels<T> panels(packed, span.rows, G * wide, D);
    if (held != span.head || vectors != panels.vectors) pack(span.head, panels);
    held = span.head, vectors = panels.vectors;
    for (int64_t r = 0; r < span.rows; ++r)
      for (int64_t s = 0; s < S; ++s)
        if (c.initial) scanweave::pack(c.initial + c.state(span.first + r, s, S, span.head), D, T(1), state(s, r));
        else std::fill_n(state(s, r), wide, T(0));
    for (int64_t t = 0; t < c.length; ++t) {
      for (int64_t r = 0; c.reset && r < span.rows; ++r)
        if (c.starts(span.first + r, t))
          for (int64_t s = 0; s < S; ++s) std::fill_n(state(s, r), wide, T(0));
      multiply<T>(span.rows, {states, wide, 1}, panels, {gates, most}, {bias, 0});
      for (int64_t r = 0; r < span.rows; ++r) step(span, r, t);
    }
    for (int64_t r = 0; r < span.rows; ++r)
      for (int64_t s = 0; s < S; ++s) unpack(state(s, r), D, T(1), last + c.state(span.first + r, s, S, span.head));
  }

  void step(const Span& span, int64_t r, int64_t t) const {
    const int64_t at = c.step(span.first + r, t, span.head);
    const T *const x = c.wx.at(span.first + r, t, span.head), *const q = gates + r * most;
    T* const keep = trace ? trace + at * P * D : nullptr;
    for (int64_t u = 0; u < D; u += W) {
      V in[G], product[G], s[S], kept[P + 1];
      for (int g = 0; g < G; ++g) {
        in[g] = read(x + g * c.wx.item + u, D - u), product[g] = load(q + g * wide + u);
        ahead(x + g * c.wx.item + u + c.wx.step);
      }
      for (int i = 0; i < S; ++i) s[i] = load(state(i, r) + u);
      Cell::forward(in, product, s, kept);
      for (int i = 0; i < S; ++i) store(state(i, r) + u, s[i]);
      write(y + at * D + u, s[0], D - u);
      if (keep)
        for (int p = 0; p < P; ++p) write(keep + p * D + u, kept[p], D - u);
    }
  }
};

// What backward reads beside the call, and where the gradients go; dwx (B, L, H, G, D), dinitial (B, S, H, D).
template <class T> struct Gradients {
  Sequence<T> dy;
  const T *y, *trace, *dlast;
  T *dwx, *dinitial;
};

template <class T, template <class> class CellOn> struct Backward {
  using V = vec<T>;
  using Cell = CellOn<V>;
  static constexpr int W = width<T>, G = Cell::gates, S = Cell::states, P = Cell::planes;
  const Call<T>& c;
  const Gradients<T> d;
  int64_t D, wide, deep;      // a row of units, padded; of gates, side by side and padded
  T *packed, *grads, *gates;  // grads [S][row][wide]: of the states; gates [row][deep]: of the products
  int64_t held = -1, vectors = 0;

  Backward(Arena& a, const Call<T>& c, const Gradients<T>& d)
      : c(c), d(d), D(c.width), wide(Panels<T>::most_columns(D)), deep(padded(G * D, W)) {
    packed = a.take<T>(deep * wide), grads = a.take<T>(S * kMostRows * wide), gates = a.take<T>(kMostRows * deep);
  }
  static void begin(const Call<T>& c, const Gradients<T>& d) { prefer_large_pages(d.dwx, c.steps() * c.width * G); }
  T* grad(int64_t s, int64_t row) const { return grads + (s * kMostRows + row) * wide; }

  void pack(int64_t head, const Panels<T>& panels) const {
    for (int64_t k = 0; k < G * D; ++k)
      for (int64_t j = 0; j < panels.columns(); j += W) {
        const int64_t lanes = D - j;
        store(panels.vector(j).row(k), lanes > 0 ? read(c.R + (head * G * D + k) * D + j, lanes) : V{});
      }
  }

  void run(const Span& span) {
    const Panels<T> panels(packed, span.rows, D, G * D);
    if (held != span.head || vectors != panels.vectors) pack(span.head, panels);
    held = span.head, vectors = panels.vectors;
    std::fill_n(grads, S * kMostRows * wide, T(0));
    for (int64_t r = 0; d.dlast && r < span.rows; ++r)
      for (int64_t s = 0; s < S; ++s)
        scanweave::pack(d.dlast + c.state(span.first + r, s, S, span.head), D, T(1), grad(s, r));
    for (int64_t t = c.length - 1; t >= 0; --t) {
      for (int64_t r = 0; r < span.rows; ++r) step(span, r, t);
      multiply<T>(span.rows, {gates, deep, 1}, panels, {grads, wide}, {grads, wide});
      for (int64_t r = 0; c.reset && r < span.rows; ++r)
        if (c.starts(span.first + r, t))
          for (int64_t s = 0; s < S; ++s) std::fill_n(grad(s, r), wide, T(0));
    }
    for (int64_t r = 0; r < span.rows; ++r)
      for (int64_t s = 0; s < S; ++s)
        unpack(grad(s, r), D, T(1), d.dinitial + c.state(span.first + r, s, S, span.head));
  }

  // A state before step t, or null where it is zero.
  const T* before(int64_t s, int64_t b, int64_t t, int64_t h) const {
    if (c.starts(b, t)) return nullptr;
    if (t == 0) return c.initial ? c.initial + c.state(b, s, S, h) : nullptr;
    const int64_t at = c.step(b, t - 1, h) * D;
    return s == 0 ? d.y + at : d.trace + at * P + (Cell::carried + s - 1) * D;
  }

  void step(const Span& span, int64_t r, int64_t t) const {
    const int64_t b = span.first + r, at = c.step(b, t, span.head);
    const T* old[Cell::reads];
    for (int s = 0; s < Cell::reads; ++s) old[s] = before(s, b, t, span.head);
    const T *const dy = d.dy.data ? d.dy.at(b, t, span.head) : nullptr, *const keep = d.trace + at * P * D;
    T* const to = d.dwx + at * G * D;
    for (int64_t u = 0; u < D; u += W) {
      V kept[P + 1], was[Cell::reads], ds[S], dx[G], dq[G];
      for (int p = 0; p < P; ++p) kept[p] = read(keep + p * D + u, D - u), ahead(keep + p * D + u - c.heads * P * D);
      for (int s = 0; s < Cell::reads; ++s) was[s] = old[s] ? read(old[s] + u, D - u) : V{};
      for (int s = 0; s < S; ++s) ds[s] = load(grad(s, r) + u);
      if (dy) ds[0] += read(dy + u, D - u), ahead(dy + u - d.dy.step);
      Cell::backward(kept, was, read(d.y + at * D + u, D - u), ds, dx, dq);
      for (int s = 0; s < S; ++s) store(grad(s, r) + u, ds[s]);
      for (int g = 0; g < G; ++g) {
        write(to + g * D + u, dx[g], D - u), ahead(to + g * D + u - c.heads * G * D);
        write(gates + r * deep + g * D + u, dq[g], D - u);
      }
    }
  }
};

template <class V> using SigmoidSlstm = Slstm<V, false>;
template <class V> using ExponentialSlstm = Slstm<V, true>;

// Cells by their number, the place of their name in cpu.py.
template <class T, template <class, template <class> class> class Pass, class... A>
int dispatch(int64_t cell, const Call<T>& c, int threads, const A&... more) {
  switch (cell) {
    case 0: return over_spans<Pass<T, Elman>>(c, Elman<vec<T>>::gates, threads, more...);
    case 1: return over_spans<Pass<T, Lstm>>(c, Lstm<vec<T>>::gates, threads, more...);
    case 2: return over_spans<Pass<T, Gru>>(c, Gru<vec<T>>::gates, threads, more...);
    case 3: return over_spans<Pass<T, SigmoidSlstm>>(c, SigmoidSlstm<vec<T>>::gates, threads, more...);
    case 4: return over_spans<Pass<T, ExponentialSlstm>>(c, ExponentialSlstm<vec<T>>::gates, threads, more...);
  }
  return 1;
}

}  // namespace
}  // namespace scanweave

// Strides count numbers. The last axis of wx and dy lies side by side; all else is contiguous. Null stands for an
// absent tensor. Returns 0; 1 for an unknown cell; 2 where memory ran out.
#define SCANWEAVE_CELL_CALL(T)                                                                                      \
  int64_t cell, const T *wx, int64_t wx_batch, int64_t wx_step, int64_t wx_head, int64_t wx_gate, const T *R,       \
      const T *bias, const T *initial, const uint8_t *reset, int64_t batch, int64_t length, int64_t heads, int64_t width
#define SCANWEAVE_CELL_PACKED \
  {{wx, wx_batch, wx_step, wx_gate, wx_head}, R, bias, initial, reset, batch, length, heads, width}
#define SCANWEAVE_CELL(NAME, T)                                                                                        \
  SCANWEAVE_EXPORT int scanweave_cell_scan_forward_##NAME(SCANWEAVE_CELL_CALL(T), T* y, T* last, T* trace,             \
                                                          int threads) {                                               \
    const scanweave::Call<T> c SCANWEAVE_CELL_PACKED;                                                                  \
    return scanweave::dispatch<T, scanweave::Forward>(cell, c, threads, y, last, trace);                               \
  }                                                                                                                    \
  SCANWEAVE_EXPORT int scanweave_cell_scan_backward_##NAME(SCANWEAVE_CELL_CALL(T), const T* dy, int64_t dy_batch,      \
                                                           int64_t dy_step, int64_t dy_head, const T* y,               \
                                                           const T* trace, const T* dlast, T* dwx, T* dinitial,        \
                                                           int threads) {                                              \
    const scanweave::Call<T> c SCANWEAVE_CELL_PACKED;                                                                  \
    const scanweave::Gradients<T> d{{dy, dy_batch, dy_step, 0, dy_head}, y, trace, dlast, dwx, dinitial};              \
    return scanweave::dispatch<T, scanweave::Backward>(cell, c, threads, d);                                           \
  }

SCANWEAVE_CELL(f32, float)
SCANWEAVE_CELL(f64, double)
