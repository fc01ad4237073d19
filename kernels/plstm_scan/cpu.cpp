// plstm_scan on a grid: the states of the edges in registers and in the first caches, node after node.
//
// A thread takes a few columns of the values of one head through the whole grid, row by row: the states of the edges
// that go right are one matrix, those that go down one for each column of the grid. The forward pass keeps the edges
// into every `band`-th row, the backward pass recomputes a band's states from them. How work is cut depends on the
// shape alone, and sums are taken in its order: the number of threads changes no bit.
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "pages.h"
#include "parallel.h"
#include "simd.h"
#include "small_matrix.h"

namespace scanweave {
namespace {

constexpr int kNoMemory = 1;
template <class T> constexpr int64_t kSlice = 2 * width<T>;  // columns of the values side by side

// A tensor (B, X, Y, H, ...): its strides over batch, grid and heads; the rest lies side by side. Null data: absent.
template <class T> struct Nodes {
  T* data;
  int64_t batch, x, y, head;
  T* at(int64_t b, int64_t i, int64_t j, int64_t h) const { return data + b * batch + i * x + j * y + h * head; }
};

// As the Python side packs it.
template <class T> struct Problem {
  Nodes<const T> q, k, v, source, transition, mark, direct;
  const T *left, *top;
  int64_t left_x, top_y;  // their strides along the grid: negative where it is walked backwards
  int64_t batch, rows, columns, heads, keys, values, band;
  double scale;

  int64_t slices() const { return (values + kSlice<T> - 1) / kSlice<T>; }
  int64_t bands() const { return (rows + band - 1) / band; }
  int64_t state() const { return keys * kSlice<T>; }
  int64_t matrix() const { return keys * values; }
};

// One head of one batch entry, and the columns of its values that are in hand.
struct Place {
  int64_t b, h, first, count;
};

template <class T> struct Gates {
  T sr, sd, rl, ru, dl, du, ml, mu, d;

  Gates(const Problem<T>& p, const Place& w, int64_t i, int64_t j) {
    const T *s = p.source.at(w.b, i, j, w.h), *t = p.transition.at(w.b, i, j, w.h), *m = p.mark.at(w.b, i, j, w.h);
    sr = s[0], sd = s[1], rl = t[0], ru = t[1], dl = t[2], du = t[3], ml = m[0], mu = m[1];
    d = *p.direct.at(w.b, i, j, w.h);
  }
};

// A matrix K x V in memory to and from the columns in hand, padded with zeros.
template <class T> void take(const T* from, const Problem<T>& p, const Place& w, T* state) {
  for (int64_t r = 0; r < p.keys; ++r) pack(from + r * p.values + w.first, w.count, T(1), state + r * kSlice<T>);
  if (w.count <= width<T>)
    for (int64_t r = 0; r < p.keys; ++r) store(state + r * kSlice<T> + width<T>, vec<T>{});
}
template <class T> void put(const T* state, const Problem<T>& p, const Place& w, T* to) {
  for (int64_t r = 0; r < p.keys; ++r) unpack(state + r * kSlice<T>, w.count, T(1), to + r * p.values + w.first);
}
template <class T> void pick(const T* from, const Place& w, T* row) {
  store(row + width<T>, vec<T>{});
  pack(from + w.first, w.count, T(1), row);
}

template <class T> inline T dot_rows(const T* a, const T* b, int64_t n) {
  constexpr int W = width<T>;
  vec<T> total{};
  int64_t i = 0;
  for (; i + W <= n; i += W) total += load(a + i) * load(b + i);
  if (i < n) total += load_part(a + i, static_cast<int>(n - i)) * load_part(b + i, static_cast<int>(n - i));
  return sum(total);
}

// One node forward: from its incoming states to its outgoing ones, which may lie in the same place, and its output; or
// to some of these.
template <class T, bool READ, bool RIGHT, bool DOWN>
inline void node(const Problem<T>& p, const Gates<T>& g, const T* q, const T* k, const T* v, const T* left,
                 const T* up, T* right, T* down, T* o) {
  constexpr int W = width<T>;
  const int64_t keys = p.keys;
  const vec<T> v0 = load(v), v1 = load(v + W), r0 = v0 * g.sr, r1 = v1 * g.sr, d0 = v0 * g.sd, d1 = v1 * g.sd;
  vec<T> ol0{}, ol1{}, ou0{}, ou1{};
  for (int64_t r = 0; r < keys; ++r) {
    const int64_t at = r * kSlice<T>;
    const vec<T> l0 = load(left + at), l1 = load(left + at + W), u0 = load(up + at), u1 = load(up + at + W);
    if (READ) ol0 += l0 * q[r], ol1 += l1 * q[r], ou0 += u0 * q[r], ou1 += u1 * q[r];
    if (RIGHT) {
      store(right + at, r0 * k[r] + l0 * g.rl + u0 * g.ru);
      store(right + at + W, r1 * k[r] + l1 * g.rl + u1 * g.ru);
    }
    if (DOWN) {
      store(down + at, d0 * k[r] + l0 * g.dl + u0 * g.du);
      store(down + at + W, d1 * k[r] + l1 * g.dl + u1 * g.du);
    }
  }
  if (READ) {
    const T seen = g.d * dot_rows(q, k, keys), scale = static_cast<T>(p.scale);
    store(o, (ol0 * g.ml + ou0 * g.mu + v0 * seen) * scale);
    store(o + W, (ol1 * g.ml + ou1 * g.mu + v1 * seen) * scale);
  }
}

template <class T> void begin(const T* from, int64_t at, const Problem<T>& p, const Place& w, T* state) {
  if (from) take(from + at, p, w, state);
  else std::fill(state, state + p.state(), T(0));
}

template <class T>
void forward_place(const Problem<T>& p, const Place& w, T* scratch, Nodes<T> o, T* right, int64_t right_x, T* bottom,
                   int64_t bottom_y, T* before) {
  const int64_t size = p.state(), matrix = p.matrix(), head = w.h * matrix;
  T *along = scratch, *down = scratch + size;
  T row[kSlice<T>], out[kSlice<T>];
  for (int64_t j = 0; j < p.columns; ++j)
    begin(p.top, (w.b * p.columns) * p.heads * matrix + head + j * p.top_y, p, w, down + j * size);
  for (int64_t i = 0; i < p.rows; ++i) {
    if (before && i % p.band == 0)
      for (int64_t j = 0; j < p.columns; ++j)
        put(down + j * size, p, w, before + (((w.b * p.bands() + i / p.band) * p.columns + j) * p.heads) * matrix + head);
    begin(p.left, (w.b * p.rows) * p.heads * matrix + head + i * p.left_x, p, w, along);
    for (int64_t j = 0; j < p.columns; ++j) {
      pick(p.v.at(w.b, i, j, w.h), w, row);
      T* below = down + j * size;
      node<T, true, true, true>(p, Gates<T>(p, w, i, j), p.q.at(w.b, i, j, w.h), p.k.at(w.b, i, j, w.h), row, along, below, along,
                    below, out);
      unpack(out, w.count, T(1), o.at(w.b, i, j, w.h) + w.first);
    }
    put(along, p, w, right + (w.b * p.rows) * p.heads * matrix + head + i * right_x);
  }
  for (int64_t j = 0; j < p.columns; ++j)
    put(down + j * size, p, w, bottom + (w.b * p.columns) * p.heads * matrix + head + j * bottom_y);
}

template <class T> struct Gradients {
  Nodes<T> q, k, v, source, transition, mark, direct;
  T *left, *top;
};

// Sums of each of `keys` rows' lanes, added to `out`, `factor` times.
template <class T> void add_row_sums(const T* rows, int64_t keys, T factor, T* turned, T* out) {
  constexpr int W = width<T>;
  for (int64_t r = 0; r < keys; r += W) {
    const int64_t n = keys - r < W ? keys - r : W;
    transpose<T>(n, W, {rows + r * W, W}, {turned, W});
    vec<T> total = load(turned);
    for (int l = 1; l < W; ++l) total += load(turned + l * W);
    for (int64_t l = 0; l < n; ++l) out[r + l] += factor * total[l];
  }
}

// One node backward: `right` and `down` hold the gradients of its outgoing states and receive those of its incoming
// ones. The sums over the values' columns are added to what other columns gave.
template <class T>
void node_back(const Problem<T>& p, const Gates<T>& g, const Place& w, int64_t i, int64_t j, const T* v, const T* dy,
               const T* left, const T* up, T* right, T* down, T* work, const Gradients<T>& d) {
  constexpr int W = width<T>;
  const int64_t keys = p.keys;
  const T *q = p.q.at(w.b, i, j, w.h), *k = p.k.at(w.b, i, j, w.h), scale = static_cast<T>(p.scale);
  T *for_q = work, *for_k = work + p.keys * W, *turned = for_k + p.keys * W;
  const vec<T> v0 = load(v), v1 = load(v + W), y0 = load(dy) * scale, y1 = load(dy + W) * scale;
  const vec<T> vr0 = v0 * g.sr, vr1 = v1 * g.sr, vd0 = v0 * g.sd, vd1 = v1 * g.sd;
  const vec<T> yl0 = y0 * g.ml, yl1 = y1 * g.ml, yu0 = y0 * g.mu, yu1 = y1 * g.mu;
  vec<T> rl{}, ru{}, dl{}, du{}, ar0{}, ar1{}, ad0{}, ad1{}, bl0{}, bl1{}, bu0{}, bu1{};
  for (int64_t r = 0; r < keys; ++r) {
    const int64_t at = r * kSlice<T>;
    const vec<T> l0 = load(left + at), l1 = load(left + at + W), u0 = load(up + at), u1 = load(up + at + W);
    const vec<T> r0 = load(right + at), r1 = load(right + at + W), d0 = load(down + at), d1 = load(down + at + W);
    rl += r0 * l0, ru += r0 * u0, dl += d0 * l0, du += d0 * u0;
    rl += r1 * l1, ru += r1 * u1, dl += d1 * l1, du += d1 * u1;
    ar0 += r0 * k[r], ar1 += r1 * k[r], ad0 += d0 * k[r], ad1 += d1 * k[r];
    bl0 += l0 * q[r], bl1 += l1 * q[r], bu0 += u0 * q[r], bu1 += u1 * q[r];
    store(for_q + r * W, l0 * yl0 + u0 * yu0 + l1 * yl1 + u1 * yu1);
    store(for_k + r * W, r0 * vr0 + d0 * vd0 + r1 * vr1 + d1 * vd1);
    store(right + at, yl0 * q[r] + r0 * g.rl + d0 * g.dl);
    store(right + at + W, yl1 * q[r] + r1 * g.rl + d1 * g.dl);
    store(down + at, yu0 * q[r] + r0 * g.ru + d0 * g.du);
    store(down + at + W, yu1 * q[r] + r1 * g.ru + d1 * g.du);
  }
  const T seen = dot_rows(q, k, p.keys), into = sum<vec<T>>(v0 * y0 + v1 * y1);
  T *dq = d.q.at(w.b, i, j, w.h), *dk = d.k.at(w.b, i, j, w.h), *ds = d.source.at(w.b, i, j, w.h);
  T *dt = d.transition.at(w.b, i, j, w.h), *dm = d.mark.at(w.b, i, j, w.h);
  add_row_sums(for_q, p.keys, T(1), turned, dq);
  add_row_sums(for_k, p.keys, T(1), turned, dk);
  for (int64_t r = 0; r < p.keys; ++r) dq[r] += g.d * into * k[r], dk[r] += g.d * into * q[r];
  dt[0] += sum(rl), dt[1] += sum(ru), dt[2] += sum(dl), dt[3] += sum(du);
  ds[0] += sum<vec<T>>(ar0 * v0 + ar1 * v1), ds[1] += sum<vec<T>>(ad0 * v0 + ad1 * v1);
  dm[0] += sum<vec<T>>(bl0 * y0 + bl1 * y1), dm[1] += sum<vec<T>>(bu0 * y0 + bu1 * y1);
  *d.direct.at(w.b, i, j, w.h) += seen * into;
  T dv[kSlice<T>];
  const T share = g.d * seen;
  store(dv, ar0 * g.sr + ad0 * g.sd + y0 * share);
  store(dv + W, ar1 * g.sr + ad1 * g.sd + y1 * share);
  unpack(dv, w.count, T(1), d.v.at(w.b, i, j, w.h) + w.first);
}

template <class T>
void backward_place(const Problem<T>& p, const Place& w, T* scratch, const T* before, Nodes<const T> dy,
                    const T* dright, int64_t right_x, const T* dbottom, int64_t bottom_y, const Gradients<T>& d) {
  const int64_t size = p.state(), matrix = p.matrix(), head = w.h * matrix, row_size = p.columns * size;
  // The states into a row's nodes from the left, those into a band's from above, and what leaves the band below.
  T *left = scratch, *up = left + row_size, *below = up + p.band * row_size;
  T *along = below + row_size, *work = along + size;
  T row[kSlice<T>], into[kSlice<T>] = {};
  const auto enter = [&](int64_t i, T* state) {
    begin(p.left, (w.b * p.rows) * p.heads * matrix + head + i * p.left_x, p, w, state);
  };
  for (int64_t j = 0; j < p.columns; ++j)
    begin(dbottom, (w.b * p.columns) * p.heads * matrix + head + j * bottom_y, p, w, below + j * size);
  for (int64_t band = p.bands() - 1; band >= 0; --band) {
    const int64_t first = band * p.band, last = std::min(p.rows, first + p.band);
    for (int64_t j = 0; j < p.columns; ++j)
      take(before + (((w.b * p.bands() + band) * p.columns + j) * p.heads) * matrix + head, p, w, up + j * size);
    for (int64_t i = first; i + 1 < last; ++i) {
      T* u = up + (i - first) * row_size;
      enter(i, along);
      for (int64_t j = 0; j < p.columns; ++j) {
        pick(p.v.at(w.b, i, j, w.h), w, row);
        node<T, false, true, true>(p, Gates<T>(p, w, i, j), nullptr, p.k.at(w.b, i, j, w.h), row, along, u + j * size,
                                   along, u + row_size + j * size, nullptr);
      }
    }
    for (int64_t i = last - 1; i >= first; --i) {
      const T* u = up + (i - first) * row_size;
      enter(i, left);
      for (int64_t j = 0; j + 1 < p.columns; ++j) {
        pick(p.v.at(w.b, i, j, w.h), w, row);
        node<T, false, true, false>(p, Gates<T>(p, w, i, j), nullptr, p.k.at(w.b, i, j, w.h), row, left + j * size,
                                    u + j * size, left + (j + 1) * size, nullptr, nullptr);
      }
      begin(dright, (w.b * p.rows) * p.heads * matrix + head + i * right_x, p, w, along);
      for (int64_t j = p.columns - 1; j >= 0; --j) {
        pick(p.v.at(w.b, i, j, w.h), w, row);
        if (dy.data) pick(dy.at(w.b, i, j, w.h), w, into);
        node_back(p, Gates<T>(p, w, i, j), w, i, j, row, into, left + j * size, u + j * size, along, below + j * size,
                  work, d);
      }
      if (d.left) put(along, p, w, d.left + (w.b * p.rows) * p.heads * matrix + head + i * p.left_x);
    }
  }
  if (d.top)
    for (int64_t j = 0; j < p.columns; ++j)
      put(below + j * size, p, w, d.top + (w.b * p.columns) * p.heads * matrix + head + j * p.top_y);
}

// Calls body(place, scratch) for every slice of the values of every head; the slices of a head by one thread, in order,
// where `whole`. Returns 0, or that memory ran out.
template <class T, class Body>
int over_places(const Problem<T>& p, int64_t scratch, bool whole, int threads, const Body& body) {
  const int64_t slices = p.slices(), group = whole ? slices : 1, items = p.batch * p.heads * slices / group;
  const int64_t team = std::max<int64_t>(1, std::min<int64_t>(threads, items));
  const int64_t bytes = padded(scratch * static_cast<int64_t>(sizeof(T)), 64);
  const std::unique_ptr<char, void (*)(void*)> memory(static_cast<char*>(std::aligned_alloc(64, team * bytes)), std::free);
  if (!memory) return kNoMemory;
  // A share of the items each: then a thread knows its scratch without asking which one it is.
  parallel_for(team, threads, 1, [&](int64_t share) {
    T* own = reinterpret_cast<T*>(memory.get() + share * bytes);
    for (int64_t item = items * share / team; item < items * (share + 1) / team; ++item)
      for (int64_t s = 0; s < group; ++s) {
        const int64_t slice = whole ? s : item % slices, pair = whole ? item : item / slices;
        const int64_t first = slice * kSlice<T>;
        body(Place{pair / p.heads, pair % p.heads, first, std::min(kSlice<T>, p.values - first)}, own);
      }
  });
  return 0;
}

// What comes out of the forward pass, as the Python side packs it.
template <class T> struct Outputs {
  Nodes<T> o;
  T *right, *bottom;
  int64_t right_x, bottom_y;
  T* before;
};

template <class T> int forward(const Problem<T>& p, const Outputs<T>& out, int threads) {
  prefer_large_pages(out.before, p.batch * p.bands() * p.columns * p.heads * p.matrix());
  return over_places(p, (p.columns + 1) * p.state(), false, threads, [&](const Place& w, T* scratch) {
    forward_place(p, w, scratch, out.o, out.right, out.right_x, out.bottom, out.bottom_y, out.before);
  });
}

// The gradients that come in, as the Python side packs them.
template <class T> struct Incoming {
  const T* before;
  Nodes<const T> o;
  const T *right, *bottom;
  int64_t right_x, bottom_y;
};

template <class T> int backward(const Problem<T>& p, const Incoming<T>& in, const Gradients<T>& d, int threads) {
  const int64_t edges = (p.band + 2) * p.columns * p.state() + p.state();
  const int64_t work = 2 * p.keys * width<T> + width<T> * width<T>;
  return over_places(p, edges + work, true, threads, [&](const Place& w, T* scratch) {
    backward_place(p, w, scratch, in.before, in.o, in.right, in.right_x, in.bottom, in.bottom_y, d);
  });
}

}  // namespace
}  // namespace scanweave

// The structs lie as the Python side packs them: 64-bit words. Returns 0, or 1 where memory ran out. The gradients of q,
// k and the gates are added to: they start at 0.
#define SCANWEAVE_PLSTM(NAME, T)                                                                                    \
  SCANWEAVE_EXPORT int scanweave_plstm_grid_forward_##NAME(const void* problem, const void* outputs, int threads) { \
    return scanweave::forward(*static_cast<const scanweave::Problem<T>*>(problem),                                  \
                              *static_cast<const scanweave::Outputs<T>*>(outputs), threads);                        \
  }                                                                                                                 \
  SCANWEAVE_EXPORT int scanweave_plstm_grid_backward_##NAME(const void* problem, const void* incoming,              \
                                                            const void* gradients, int threads) {                   \
    return scanweave::backward(*static_cast<const scanweave::Problem<T>*>(problem),                                 \
                               *static_cast<const scanweave::Incoming<T>*>(incoming),                               \
                               *static_cast<const scanweave::Gradients<T>*>(gradients), threads);                   \
  }

SCANWEAVE_PLSTM(f32, float)
SCANWEAVE_PLSTM(f64, double)
