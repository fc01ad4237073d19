// ttt_linear on the CPU: one head of one row at a time, mini-batch after mini-batch by the dual form, the inner model's
// weights in the first-level cache.
//
// Keys and queries carry a further 1, so that the bias is the last row of the weights. `base` are the weights at which a
// mini-batch's gradients are taken, `read` those that its first query reads but for its own step: the same, unless a
// state came in the midst of a mini-batch. With E the gradients times minus their step sizes, what the queries read is
// Q read + tril(Q K^T) E, and the next weights are read + K^T E. A sequence's start begins a mini-batch.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>

#include "matrix_state.h"
#include "parallel.h"
#include "small_matrix.h"

namespace scanweave {
namespace {

constexpr int kBadPosition = 1;

// The steps of one mini-batch that one call sees.
struct Part {
  int64_t time, count;
  bool starts, closes;  // it is the first of a sequence that starts at a reset; it ends with a full mini-batch
};

template <class T> struct Call {
  Sequence<T> q, k, v, eta;
  const T *weights, *scale, *shift, *initial;  // (H, D + 1, D), (H, D), (H, D), (B, H, 2, D + 1, D)
  const int64_t* position;                     // (B,)
  const uint8_t* reset;                        // (B, L)
  int64_t batch, length, heads, width, mini_batch;
  double epsilon;

  int64_t matrix() const { return (width + 1) * width; }
  int64_t slots() const { return (length + mini_batch - 2) / mini_batch; }
  bool starts(int64_t b, int64_t t) const { return reset && reset[b * length + t]; }
  int64_t held(int64_t b) const { return position ? position[b] : 0; }
  // Where the weights before a mini-batch are saved that begins, other than by a reset, at t > 0.
  int64_t slot(int64_t b, int64_t h, int64_t t) const {
    return ((b * slots() + (t - 1) / mini_batch) * heads + h) * matrix();
  }

  // The part that begins at t, when the running mini-batch holds so many steps.
  Part part(int64_t b, int64_t t, int64_t held) const {
    const bool first = starts(b, t);
    const int64_t room = mini_batch - (first ? 0 : held), end = std::min(t + room, length);
    int64_t stop = t + 1;
    while (stop < end && !starts(b, stop)) ++stop;
    return {t, stop - t, first, stop - t == room};
  }
  // Calls body(part) for each in turn.
  template <class Body> void each_part(int64_t b, Body&& body) const {
    for (int64_t t = 0, now = held(b); t < length;) {
      const Part p = part(b, t, now);
      body(p);
      t += p.count, now = p.closes ? 0 : p.count + (p.starts ? 0 : now);
    }
  }
};

// The working set of a mini-batch. Rows of D numbers are padded to `wide`, rows of D + 1 to `long_`, of steps to `many`.
template <class T> struct Desk {
  static constexpr int W = width<T>;
  const Call<T>& c;
  int64_t D, wide, long_, many;
  T *inside, *scale, *shift;                // [D]: 1 within a row and 0 in its padding; the norm's parameters
  T *k, *q, *across, *scores;               // [step][D + 1] twice; K^T; tril(Q K^T)
  T *x, *error, *gradient, *moves, *found;  // [step][D]: the norm of K base; f(k) - v; of the loss; E; the norm of Y
  T *eta, *by, *found_by;                   // [step]: the factors of both norms

  Desk(Arena& a, const Call<T>& c)
      : c(c), D(c.width), wide(padded(D, W)), long_(padded(D + 1, W)),
        many(padded(std::min(c.mini_batch, c.length), W)) {
    inside = a.take<T>(wide), scale = a.take<T>(wide), shift = a.take<T>(wide);
    k = a.take<T>(many * long_), q = a.take<T>(many * long_);
    across = a.take<T>(long_ * many), scores = a.take<T>(many * many);
    x = rows(a), error = rows(a), gradient = rows(a), moves = rows(a), found = rows(a);
    eta = a.take<T>(many), by = a.take<T>(many), found_by = a.take<T>(many);
  }
  T* rows(Arena& a) const { return a.take<T>(many * wide); }
  int64_t columns(int64_t n) const { return padded(n, W); }

  void begin(int64_t h) const {
    std::fill_n(inside, wide, T(0)), std::fill_n(inside, D, T(1));
    pack(c.scale + h * D, D, T(1), scale), pack(c.shift + h * D, D, T(1), shift);
  }
  void read_matrix(const T* from, T* to) const {
    for (int64_t i = 0; i <= D; ++i) pack(from + i * D, D, T(1), to + i * wide);
  }
  void write_matrix(const T* from, T* to) const {
    for (int64_t i = 0; i <= D; ++i) unpack(from + i * wide, D, T(1), to + i * D);
  }

  // Normalises a row in place; returns the factor.
  T normalise(T* z) const {
    vec<T> total{}, squares{};
    for (int64_t j = 0; j < wide; j += W) total += load(z + j);
    const T mean = sum(total) / D;
    for (int64_t j = 0; j < wide; j += W) {
      const vec<T> centred = (load(z + j) - mean) * load(inside + j);
      store(z + j, centred);
      squares += centred * centred;
    }
    const T factor = T(1) / std::sqrt(sum(squares) / D + T(c.epsilon));
    for (int64_t j = 0; j < wide; j += W) store(z + j, load(z + j) * factor);
    return factor;
  }
  // The gradient before a norm of a gradient after it; symmetric, so that its own gradient is itself.
  void through_norm(const T* g, const T* normal, T factor, T* out) const {
    vec<T> total{}, along{};
    for (int64_t j = 0; j < wide; j += W) total += load(g + j), along += load(g + j) * load(normal + j);
    const T mean = sum(total) / D, slope = sum(along) / D;
    for (int64_t j = 0; j < wide; j += W)
      store(out + j, (load(g + j) - mean - load(normal + j) * slope) * load(inside + j) * factor);
  }

  void gather(const Sequence<T>& s, int64_t b, int64_t h, const Part& p, T* to) const {
    for (int64_t i = 0; i < p.count; ++i) {
      T* const row = to + i * long_;
      std::fill_n(row + D, long_ - D, T(0));
      pack(s.at(b, p.time + i, h), D, T(1), row);
      row[D] = T(1);
    }
  }

  // Everything up to the norm of what the queries read.
  void work(int64_t b, int64_t h, const Part& p, const T* base, const T* read) const {
    const int64_t n = p.count;
    gather(c.k, b, h, p, k), gather(c.q, b, h, p, q);
    multiply<T>(n, wide, D + 1, {k, long_, 1}, {base, wide}, {x, wide});
    for (int64_t i = 0; i < n; ++i) {
      T *const row = x + i * wide, *const e = error + i * wide, *const g = gradient + i * wide;
      by[i] = normalise(row);
      eta[i] = *c.eta.at(b, p.time + i, h);
      pack(c.v.at(b, p.time + i, h), D, T(1), e);
      for (int64_t j = 0; j < wide; j += W) {
        const vec<T> off = load(scale + j) * load(row + j) + load(shift + j) - load(e + j) + load(k + i * long_ + j);
        store(e + j, off);
        store(g + j, off * load(scale + j));
      }
      through_norm(g, row, by[i], g);
      for (int64_t j = 0; j < wide; j += W) store(moves + i * wide + j, load(g + j) * -eta[i]);
    }
    transpose<T>(n, long_, {k, long_}, {across, many});
    multiply<T>(n, columns(n), D + 1, {q, long_, 1}, {across, many}, {scores, many});
    for (int64_t i = 0; i < n; ++i) std::fill(scores + i * many + i + 1, scores + i * many + columns(n), T(0));
    multiply<T>(n, wide, D + 1, {q, long_, 1}, {read, wide}, {found, wide});
    multiply<T>(n, wide, n, {scores, many, 1}, {moves, wide}, {found, wide}, {{found, wide}});
    for (int64_t i = 0; i < n; ++i) found_by[i] = normalise(found + i * wide);
  }
};

// o (B, L, H, D), the last state (B, H, 2, D + 1, D) and, unless null, the weights before mini-batches.
template <class T> int forward_head(const Call<T>& c, int64_t b, int64_t h, T* o, T* last, T* before) {
  constexpr int W = width<T>;
  if (c.held(b) < 0 || c.held(b) >= c.mini_batch) return kBadPosition;
  Arena arena;
  const int64_t size = (c.width + 1) * padded(c.width, W), at = b * c.heads + h;
  Desk<T>(arena, c), arena.take<T>(size), arena.take<T>(size);
  if (!arena.reserve()) return kNoMemory;
  const Desk<T> d(arena, c);
  T *base = arena.take<T>(size), *other = arena.take<T>(size), *read = base;
  d.begin(h);
  d.read_matrix(c.initial ? c.initial + 2 * at * c.matrix() : c.weights + h * c.matrix(), base);
  if (c.initial) {
    read = other;
    d.read_matrix(c.initial + (2 * at + 1) * c.matrix(), read);
    for (int64_t i = 0; i < size; i += W) store(read + i, load(base + i) - load(read + i));
  }
  c.each_part(b, [&](const Part& p) {
    if (p.starts) d.read_matrix(c.weights + h * c.matrix(), read = base);
    else if (before && p.time) d.write_matrix(base, before + c.slot(b, h, p.time));
    d.work(b, h, p, base, read);
    for (int64_t i = 0; i < p.count; ++i) {
      T* const row = d.found + i * d.wide;
      for (int64_t j = 0; j < d.wide; j += W)
        store(row + j, load(row + j) * load(d.scale + j) + load(d.shift + j) + load(d.q + i * d.long_ + j));
      unpack(row, d.D, T(1), o + ((b * c.length + p.time + i) * c.heads + h) * d.D);
    }
    multiply<T>(d.D + 1, d.wide, p.count, {d.k, 1, d.long_}, {d.moves, d.wide}, {other, d.wide}, {{read, d.wide}});
    read = other;
    if (p.closes) std::swap(base, other), read = base;
  });
  d.write_matrix(base, last + 2 * at * c.matrix());
  for (int64_t i = 0; i < size; i += W) store(other + i, load(base + i) - load(read + i));
  d.write_matrix(other, last + (2 * at + 1) * c.matrix());
  return 0;
}

// Where the gradients go; the parameters' have room for each row's own (B, H, ...), added up afterwards.
template <class T> struct Gradients {
  T *q, *k, *v, *eta, *weights, *scale, *shift, *initial;
};

// The way back through mini-batches. `dbase` and `dread` come as the gradients of the weights after one (the base, which
// a closed mini-batch has none of, and its sum with the steps), and leave as those of the weights before it.
template <class T> struct Back {
  static constexpr int W = width<T>;
  const Desk<T>& d;
  T *dbase, *dread, *turned, *turned_read;  // [D + 1][D] twice, [D][D + 1] twice
  T *dfound, *dmoves, *dz, *row;            // [step][D] thrice, [D]
  T *dscores, *moves_across, *dq, *dk;      // [step][step], [D][step], [step][D + 1] twice
  T *dscale, *dshift;                       // [D]

  Back(Arena& a, const Desk<T>& d) : d(d) {
    dbase = a.take<T>((d.D + 1) * d.wide), dread = a.take<T>((d.D + 1) * d.wide);
    turned = a.take<T>(d.wide * d.long_ + W * d.long_), turned_read = a.take<T>(d.wide * d.long_ + W * d.long_);
    dfound = d.rows(a), dmoves = d.rows(a), dz = d.rows(a), row = a.take<T>(d.wide);
    dscores = a.take<T>(d.many * d.many), moves_across = a.take<T>(d.wide * d.many);
    dq = a.take<T>(d.many * d.long_), dk = a.take<T>(d.many * d.long_);
    dscale = a.take<T>(d.wide), dshift = a.take<T>(d.wide);
  }

  // The gradient of what the queries read, and through it of Y, E and the scores.
  void outputs(int64_t b, int64_t h, const Part& p, const Sequence<T>& into) const {
    const int64_t n = p.count;
    for (int64_t i = 0; i < n; ++i) {
      T* const to = dq + i * d.long_;
      std::fill_n(to + d.D, d.long_ - d.D, T(0));
      if (into.data) pack(into.at(b, p.time + i, h), d.D, T(1), to);
      else std::fill_n(to, d.wide, T(0));
      for (int64_t j = 0; j < d.wide; j += W) {
        const vec<T> g = load(to + j);
        store(dscale + j, load(dscale + j) + g * load(d.found + i * d.wide + j));
        store(dshift + j, load(dshift + j) + g);
        store(row + j, g * load(d.scale + j));
      }
      d.through_norm(row, d.found + i * d.wide, d.found_by[i], dfound + i * d.wide);
    }
    multiply<T>(n, d.wide, d.D + 1, {d.k, d.long_, 1}, {dread, d.wide}, {dmoves, d.wide});
    multiply<T>(n, d.wide, n, {d.scores, 1, d.many}, {dfound, d.wide}, {dmoves, d.wide}, {{dmoves, d.wide}});
    transpose<T>(n, d.wide, {d.moves, d.wide}, {moves_across, d.many});
    multiply<T>(n, d.columns(n), d.D, {dfound, d.wide, 1}, {moves_across, d.many}, {dscores, d.many});
    for (int64_t i = 0; i < n; ++i) std::fill(dscores + i * d.many + i + 1, dscores + i * d.many + d.columns(n), T(0));
  }

  // The gradient of a step's gradient, and through it of K base, v and k. The gradient is itself the way back through a
  // norm: `scale * error` less its parts along 1 and x, divided by the deviation.
  void gradients(int64_t i, T* deta, T* dv) const {
    const T *const x = d.x + i * d.wide, *const error = d.error + i * d.wide, *const gradient = d.gradient + i * d.wide;
    T *const into = dmoves + i * d.wide, *const to = dz + i * d.wide;
    vec<T> rate{}, error_along{}, into_along{};
    for (int64_t j = 0; j < d.wide; j += W) {
      const vec<T> g = load(into + j) * -d.eta[i];
      rate -= load(into + j) * load(gradient + j);
      error_along += load(d.scale + j) * load(error + j) * load(x + j);
      into_along += g * load(x + j);
      store(into + j, g);
    }
    *deta = sum(rate);
    const T factor = d.by[i], a = sum(error_along) / d.D * factor, c = sum(into_along) / d.D * factor;
    d.through_norm(into, x, factor, row);  // of scale * error
    vec<T> lost{};
    for (int64_t j = 0; j < d.wide; j += W) {
      const vec<T> dscaled = load(row + j), scale = load(d.scale + j), derror = dscaled * scale;
      lost += load(into + j) * load(gradient + j);
      store(dscale + j, load(dscale + j) + dscaled * load(error + j) + derror * load(x + j));
      store(dshift + j, load(dshift + j) + derror);
      store(to + j, derror * scale - load(into + j) * a - scale * load(error + j) * c);
      store(row + j, derror);
    }
    d.through_norm(to, x, factor, to);
    const T deviation = -sum(lost) / d.D * factor;
    T* const key = dk + i * d.long_;
    for (int64_t j = 0; j < d.wide; j += W) {
      store(to + j, load(to + j) + load(x + j) * deviation);
      store(key + j, load(key + j) + load(row + j));
      store(row + j, -load(row + j));
    }
    unpack(row, d.D, T(1), dv);
  }

  void part(int64_t b, int64_t h, const Part& p, const T* base, const T* read, const Sequence<T>& into,
            const Gradients<T>& out) const {
    const int64_t n = p.count, deep = d.D + 1;
    d.work(b, h, p, base, read);
    outputs(b, h, p, into);
    transpose<T>(deep, d.wide, {base, d.wide}, {turned, d.long_});
    if (read != base) transpose<T>(deep, d.wide, {read, d.wide}, {turned_read, d.long_});
    const T* const back = read == base ? turned : turned_read;
    multiply<T>(n, d.long_, d.D, {dfound, d.wide, 1}, {back, d.long_}, {dq, d.long_}, {{dq, d.long_}});
    multiply<T>(n, d.long_, n, {dscores, d.many, 1}, {d.k, d.long_}, {dq, d.long_}, {{dq, d.long_}});
    multiply<T>(n, d.long_, n, {dscores, 1, d.many}, {d.q, d.long_}, {dk, d.long_});
    transpose<T>(deep, d.wide, {dread, d.wide}, {turned_read, d.long_});
    multiply<T>(n, d.long_, d.D, {d.moves, d.wide, 1}, {turned_read, d.long_}, {dk, d.long_}, {{dk, d.long_}});
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = (b * d.c.length + p.time + i) * d.c.heads + h;
      gradients(i, out.eta + at, out.v + at * d.D);
    }
    multiply<T>(n, d.long_, d.D, {dz, d.wide, 1}, {turned, d.long_}, {dk, d.long_}, {{dk, d.long_}});
    multiply<T>(deep, d.wide, n, {d.q, 1, d.long_}, {dfound, d.wide}, {dread, d.wide}, {{dread, d.wide}});
    multiply<T>(deep, d.wide, n, {d.k, 1, d.long_}, {dz, d.wide}, {dbase, d.wide}, {{dbase, d.wide}});
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = ((b * d.c.length + p.time + i) * d.c.heads + h) * d.D;
      unpack(dq + i * d.long_, d.D, T(1), out.q + at), unpack(dk + i * d.long_, d.D, T(1), out.k + at);
    }
  }

  // dread takes what dbase held, as at the boundary where both are the same weights.
  void merge() const {
    for (int64_t i = 0; i < (d.D + 1) * d.wide; i += W) {
      store(dread + i, load(dread + i) + load(dbase + i));
      store(dbase + i, vec<T>{});
    }
  }
  // Adds the gradient of the first weights to the row's own.
  void add_first(T* out) const {
    for (int64_t i = 0; i <= d.D; ++i)
      for (int64_t j = 0; j < d.D; ++j) out[i * d.D + j] += dread[i * d.wide + j];
  }
};

template <class T>
int backward_head(const Call<T>& c, int64_t b, int64_t h, const T* before, const Sequence<T>& into, const T* dlast,
                  const Gradients<T>& out) {
  constexpr int W = width<T>;
  Arena arena;
  const int64_t size = (c.width + 1) * padded(c.width, W), at = b * c.heads + h;
  int64_t count = 0;
  c.each_part(b, [&](const Part&) { ++count; });
  const auto take_parts = [&] { return arena.take<Part>(count); };
  Back<T>(arena, Desk<T>(arena, c)), arena.take<T>(size), arena.take<T>(size), take_parts();
  if (!arena.reserve()) return kNoMemory;
  const Desk<T> d(arena, c);
  const Back<T> back(arena, d);
  T *const base = arena.take<T>(size), *const first_read = arena.take<T>(size);
  Part* const parts = take_parts();
  c.each_part(b, [&, next = parts](const Part& p) mutable { *next++ = p; });
  d.begin(h);
  T *const dweights = out.weights + at * c.matrix(), *const dinitial = out.initial + 2 * at * c.matrix();
  std::fill_n(dweights, c.matrix(), T(0));
  std::fill_n(back.dscale, d.wide, T(0)), std::fill_n(back.dshift, d.wide, T(0));
  std::fill_n(back.dbase, size, T(0)), std::fill_n(back.dread, size, T(0));
  if (dlast) {
    d.read_matrix(dlast + 2 * at * c.matrix(), back.dbase);
    d.read_matrix(dlast + (2 * at + 1) * c.matrix(), base);
    // A full mini-batch leaves its sum; another one the base and the difference of the two.
    for (int64_t i = 0; !parts[count - 1].closes && i < size; i += W) {
      store(back.dbase + i, load(back.dbase + i) + load(base + i));
      store(back.dread + i, -load(base + i));
    }
  }
  for (int64_t i = count - 1; i >= 0; --i) {
    const Part& p = parts[i];
    if (p.closes) back.merge();
    const bool initial = c.initial && p.time == 0 && !p.starts;
    d.read_matrix(initial                  ? c.initial + 2 * at * c.matrix()
                  : p.starts || p.time == 0 ? c.weights + h * c.matrix()
                                            : before + c.slot(b, h, p.time),
                  base);
    if (initial) {
      d.read_matrix(c.initial + (2 * at + 1) * c.matrix(), first_read);
      for (int64_t j = 0; j < size; j += W) store(first_read + j, load(base + j) - load(first_read + j));
    }
    back.part(b, h, p, base, initial ? first_read : base, into, out);
    if (initial) {
      d.write_matrix(back.dread, dinitial + c.matrix());
      for (int64_t j = 0; j < c.matrix(); ++j) dinitial[c.matrix() + j] = -dinitial[c.matrix() + j];
      back.merge();
      d.write_matrix(back.dread, dinitial);
    } else if (p.starts || p.time == 0) {
      back.merge();
      back.add_first(dweights);
      std::fill_n(back.dread, size, T(0));
      if (c.initial && p.time == 0) std::fill_n(dinitial, 2 * c.matrix(), T(0));
    }
  }
  unpack(back.dscale, d.D, T(1), out.scale + at * d.D), unpack(back.dshift, d.D, T(1), out.shift + at * d.D);
  return 0;
}

// Calls body(row, head) for each; returns the worst status.
template <class T, class Body> int over_heads(const Call<T>& c, int threads, const Body& body) {
  constexpr int64_t kGrain = 65536;  // steps times weights that are worth waking a thread for
  std::atomic<int> worst{0};
  parallel_for(c.batch * c.heads, threads, kGrain / std::max<int64_t>(1, c.length * c.matrix()) + 1, [&](int64_t i) {
    const int status = body(i / c.heads, i % c.heads);
    for (int seen = worst; status > seen && !worst.compare_exchange_weak(seen, status);) {}
  });
  return worst;
}

template <class T> int run(const Call<T>& c, T* o, T* last, T* before, int threads) {
  return over_heads(c, threads, [&](int64_t b, int64_t h) { return forward_head(c, b, h, o, last, before); });
}

template <class T>
int run_back(const Call<T>& c, const T* before, const Sequence<T>& into, const T* dlast, const Gradients<T>& out,
             int threads) {
  const int64_t vectors = c.heads * c.width, weights = c.heads * c.matrix();
  const std::unique_ptr<T[]> parts(new (std::nothrow) T[c.batch * (weights + 2 * vectors)]);
  if (!parts) return kNoMemory;
  Gradients<T> own = out;
  own.weights = parts.get(), own.scale = own.weights + c.batch * weights, own.shift = own.scale + c.batch * vectors;
  const int status = over_heads(
      c, threads, [&](int64_t b, int64_t h) { return backward_head(c, b, h, before, into, dlast, own); });
  if (status) return status;
  add_up(own.weights, c.batch, weights, out.weights, threads);
  add_up(own.scale, c.batch, vectors, out.scale, threads);
  add_up(own.shift, c.batch, vectors, out.shift, threads);
  return 0;
}

}  // namespace
}  // namespace scanweave

// Strides count numbers; the last two axes of a sequence lie side by side, parameters, states and outputs are
// contiguous. Null stands for an absent tensor. Returns 0; 1 where a position lies outside of a mini-batch; 2 where
// memory ran out.
#define SCANWEAVE_ROWS(T, X) const T *X, int64_t X##_batch, int64_t X##_step
#define SCANWEAVE_CALL(T)                                                                                           \
  SCANWEAVE_ROWS(T, q), SCANWEAVE_ROWS(T, k), SCANWEAVE_ROWS(T, v), SCANWEAVE_ROWS(T, eta), const T *weights,       \
      const T *scale, const T *shift, const T *initial, const int64_t *position, const uint8_t *reset, int64_t batch, \
      int64_t length, int64_t heads, int64_t width, int64_t mini_batch, double epsilon
#define SCANWEAVE_PACKED                                                                                     \
  {{q, q_batch, q_step, 0, width}, {k, k_batch, k_step, 0, width}, {v, v_batch, v_step, 0, width},           \
   {eta, eta_batch, eta_step, 0, 1}, weights, scale, shift, initial, position, reset, batch, length, heads, width, \
   mini_batch, epsilon}

#define SCANWEAVE_TTT_LINEAR(NAME, T)                                                                               \
  SCANWEAVE_EXPORT int scanweave_ttt_linear_forward_##NAME(SCANWEAVE_CALL(T), T* o, T* last, T* before,             \
                                                           int threads) {                                           \
    return scanweave::run<T>(SCANWEAVE_PACKED, o, last, before, threads);                                       \
  }                                                                                                                 \
  SCANWEAVE_EXPORT int scanweave_ttt_linear_backward_##NAME(                                                        \
      SCANWEAVE_CALL(T), const T* before, SCANWEAVE_ROWS(T, into), const T* dlast, T* dq, T* dk, T* dv, T* deta,    \
      T* dweights, T* dscale, T* dshift, T* dinitial, int threads) {                                                \
    return scanweave::run_back<T>(SCANWEAVE_PACKED, before, {into, into_batch, into_step, 0, width}, dlast,         \
                                  {dq, dk, dv, deta, dweights, dscale, dshift, dinitial}, threads);                 \
  }

SCANWEAVE_TTT_LINEAR(f32, float)
SCANWEAVE_TTT_LINEAR(f64, double)
