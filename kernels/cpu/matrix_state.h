// Recurrences whose state is a matrix per head, K x V, on the CPU: their common form, and the forward pass.
//
//   S <- Diag(w_t) S + sum_j x_j y_j^T,   o_t = q_t^T S
//
// y_j is a value (plain), beta (v - x_j^T S) (delta rule), or a^T S (the rank-one part of dplr). Time goes in blocks of a
// few steps. With S0 the state before a block, P(s, t) the product of the decays of steps s + 1 ... t and C the
// products of a block's reads with its writes under the decay between them, everything is a small matrix product:
//
//   Z = (reads decayed from the block's start) S0 + C Y,   S = Diag(P) S0 + (writes decayed to the block's end)^T Y
//
// where Y is solved for downwards, since C is lower triangular. Decays are products of numbers in [0, 1]: nothing
// overflows, and a decay of 0 needs no care. A step at which the state is reset begins a block.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "parallel.h"
#include "small_matrix.h"

namespace scanweave {

enum class Decay { none, scalar, rows };
enum class Form { plain, delta, dplr };

constexpr int kPositiveDecay = 1, kNoMemory = 2;

// How many decays there are: none, one a head, one a head and step, one for each of its rows.
constexpr int64_t kNoDecay = 0, kConstant = 1, kPerRow = 3;

// A tensor (B, L, [n,] H, ...): its strides over batch, step, item and head; the last axis lies side by side.
template <class T> struct Sequence {
  const T* data;
  int64_t batch, step, item, head;
  const T* at(int64_t b, int64_t t, int64_t h, int64_t i = 0) const {
    return data + b * batch + t * step + i * item + h * head;
  }
};

// One call. Pointers and 64-bit numbers only: the caller packs it as it stands here. Null stands for an absent tensor.
template <class T> struct Problem {
  Sequence<T> q, k, v, a, b, beta, decay;
  const T *bonus, *initial;  // (H, K), (B, H, K, V)
  const uint8_t* reset;      // (B, L)
  int64_t batch, length, heads, many, keys, values, chunk, kind;
  double scale;

  int64_t chunks() const { return (length + chunk - 1) / chunk; }
  bool starts(int64_t n, int64_t t) const { return reset && reset[n * length + t]; }

  // How many steps the block that begins at t takes: until the next reset, the chunk's end or `most`.
  int64_t block(int64_t n, int64_t t, int64_t most) const {
    const int64_t end = std::min({t + most, (t / chunk + 1) * chunk, length});
    int64_t stop = t + 1;
    while (stop < end && !starts(n, stop)) ++stop;
    return stop - t;
  }
};

// Columns of the state do not meet: where there are few heads, each head's are cut into pieces. The cut depends on the
// shape alone, so that the number of threads changes no bit of any result.
struct Cut {
  int64_t width, count;
  template <class T> explicit Cut(const Problem<T>& p) {
    const int64_t items = std::max<int64_t>(1, p.batch * p.heads), pieces = (8 + items - 1) / items;
    width = std::min(p.values, std::max<int64_t>(32, padded((p.values + pieces - 1) / pieces, 16)));
    count = width ? (p.values + width - 1) / width : 0;
  }
};

// One piece of one head.
template <class T> struct Item {
  int64_t batch, head, piece, first, columns;
  Item(const Problem<T>& p, const Cut& cut, int64_t i)
      : batch(i / cut.count / p.heads), head(i / cut.count % p.heads), piece(i % cut.count), first(piece * cut.width),
        columns(std::min(cut.width, p.values - first)) {}
  int64_t state(const Problem<T>& p) const { return (batch * p.heads + head) * p.keys * p.values + first; }
};

// What a step is made of, and how long the rows are.
template <class T, Decay D, Form F> struct Layout {
  static constexpr int W = width<T>;
  int64_t solves, reads, writes;  // rows a step: reads to solve with, all reads, writes
  int64_t steps;                  // of a block, at most
  int64_t keys, columns;          // padded
  int64_t pairs;                  // length of a row of C, padded
  int64_t factor;                 // length of a row of decays
  bool late;                      // the output is read before the step's own decay and write

  Layout(const Problem<T>& p, int64_t width)
      : solves(F == Form::plain ? 0 : F == Form::delta ? p.many : 1), reads(solves + 1),
        writes(F == Form::plain ? 1 : F == Form::delta ? p.many : 2),
        steps(std::max<int64_t>(1, (D == Decay::rows ? 8 : 16) / (F == Form::delta ? p.many : 1))),
        keys(padded(p.keys, W)), columns(padded(width, W)), pairs(padded(steps * writes, W)),
        factor(D == Decay::none ? 0 : D == Decay::rows ? keys : W), late(F == Form::plain && p.bonus) {}

  // A block's reads: first those to solve with, step by step, then the outputs. Row i of a block of n steps ...
  int64_t step_of(int64_t i, int64_t n) const { return i < n * solves ? i / solves : i - n * solves; }
  // ... sees the decays up to this step's (-1: none) ...
  int64_t decayed_to(int64_t i, int64_t n) const {
    const bool before = i < n * solves ? F == Form::dplr : late;
    return step_of(i, n) - before;
  }
  // ... and this many writes.
  int64_t seen(int64_t i, int64_t n) const {
    if (i >= n * solves) return (step_of(i, n) + !late) * writes;
    return F == Form::delta ? i : step_of(i, n) * writes;
  }
};

// Memory handed out in aligned pieces. Built twice with the same calls: first to count, then, reserved, to serve.
class Arena {
 public:
  template <class T> T* take(int64_t n) {
    char* const found = base_ + used_;
    used_ += padded(n * sizeof(T), 64);
    return reinterpret_cast<T*>(found);
  }
  bool reserve() {
    // Kept for the thread's next item: fresh pages cost as much as the work on them.
    thread_local std::unique_ptr<char, decltype(&std::free)> kept(nullptr, &std::free);
    thread_local int64_t size = 0;
    if (size < used_) {
      kept.reset(), size = 0;
      kept.reset(static_cast<char*>(std::aligned_alloc(64, padded(used_, 64))));
      if (!kept) return false;
      size = used_;
    }
    base_ = kept.get(), used_ = 0;
    return true;
  }

 private:
  char* base_ = nullptr;
  int64_t used_ = 0;
};

// The numbers of some steps, row by row.
template <class T, Decay D, Form F> struct Steps {
  T *reads, *decayed_reads;    // [read][key]
  T *writes, *decayed_writes;  // [write][key]
  T *pairs;                    // C: [read][write]
  T *values, *errors;          // Y and (delta) v - x^T S, [write][column]
  T *beta;                     // [write]
  T *decay, *since;            // [step][factor]: of the step; from the block's start through the step

  Steps(Arena& arena, const Layout<T, D, F>& l, int64_t steps) {
    const int64_t reads_size = steps * l.reads * l.keys, writes_size = steps * l.writes * l.keys;
    reads = arena.take<T>(reads_size), writes = arena.take<T>(writes_size);
    decayed_reads = D == Decay::none ? reads : arena.take<T>(reads_size);
    decayed_writes = D == Decay::none ? writes : arena.take<T>(writes_size);
    pairs = arena.take<T>(steps * l.reads * l.pairs);
    values = arena.take<T>(steps * l.writes * l.columns);
    errors = arena.take<T>(F == Form::delta ? steps * l.writes * l.columns : 0);
    beta = arena.take<T>(F == Form::delta ? steps * l.writes : 0);
    decay = arena.take<T>(steps * l.factor), since = arena.take<T>(steps * l.factor);
  }

  // The same from a later step on.
  Steps from(const Layout<T, D, F>& l, int64_t step) const {
    Steps s = *this;
    s.reads += step * l.reads * l.keys, s.decayed_reads += step * l.reads * l.keys;
    s.writes += step * l.writes * l.keys, s.decayed_writes += step * l.writes * l.keys;
    s.pairs += step * l.reads * l.pairs;
    s.values += step * l.writes * l.columns, s.decay += step * l.factor, s.since += step * l.factor;
    if (F == Form::delta) s.errors += step * l.writes * l.columns, s.beta += step * l.writes;
    return s;
  }
};

// What one block's work needs beside its steps.
template <class T, Decay D, Form F> struct Desk {
  T *across;  // writes transposed, [key][write]
  T *found;   // Z: [read][column]
  T *walk;    // (rows) one write under every step's decay, [step][key]

  Desk(Arena& arena, const Layout<T, D, F>& l)
      : across(arena.take<T>(l.keys * l.pairs)), found(arena.take<T>(l.steps * l.reads * l.columns)),
        walk(arena.take<T>(D == Decay::rows ? l.steps * l.keys : 0)) {}
};

template <class T, Decay D, Form F> struct Block {
  const Problem<T>& p;
  const Layout<T, D, F>& l;
  const Item<T>& item;
  const Steps<T, D, F> s;
  const Desk<T, D, F>& desk;
  int64_t time, n;  // its first step, and how many

  static constexpr int W = width<T>;
  int64_t solves() const { return n * l.solves; }
  int64_t reads() const { return n * l.reads; }
  int64_t writes() const { return n * l.writes; }
  vec<T> factor(const T* row, int64_t key) const { return load(row + (D == Decay::rows ? key : 0)); }

  // Copies the block's steps out of the tensors; returns whether every decay is at most 1.
  bool gather() const {
    const int64_t b = item.batch, h = item.head;
    const auto key = [&](const Sequence<T>& x, int64_t t, int64_t i, T scale, T* to) {
      pack(x.at(b, t, h, i), p.keys, scale, to);
    };
    for (int64_t i = 0; i < n; ++i) {
      const int64_t t = time + i;
      key(p.q, t, 0, T(p.scale), s.reads + (solves() + i) * l.keys);
      if (F == Form::dplr) {
        key(p.a, t, 0, T(1), s.reads + i * l.keys);
        key(p.b, t, 0, T(1), s.writes + 2 * i * l.keys);
        key(p.k, t, 0, T(1), s.writes + (2 * i + 1) * l.keys);
        pack(p.v.at(b, t, h) + item.first, item.columns, T(1), s.values + (2 * i + 1) * l.columns);
        continue;
      }
      for (int64_t j = 0; j < l.writes; ++j) {
        const int64_t w = i * l.writes + j;
        key(p.k, t, j, T(1), s.writes + w * l.keys);
        if (F == Form::delta) std::copy_n(s.writes + w * l.keys, l.keys, s.reads + w * l.keys);
        if (F == Form::delta) s.beta[w] = *p.beta.at(b, t, h, j);
        pack(p.v.at(b, t, h, j) + item.first, item.columns, T(1),
             (F == Form::delta ? s.errors : s.values) + w * l.columns);
      }
    }
    return gather_decays();
  }

  bool gather_decays() const {
    if (D == Decay::none) return true;
    bool good = true;
    for (int64_t i = 0; i < n; ++i) {
      const T* const from = p.decay.at(item.batch, time + i, item.head);
      T* const to = s.decay + i * l.factor;
      if (D == Decay::scalar) store(to, splat(*from));
      else pack(from, p.keys, T(1), to);
      typename Vec<T>::mask over{};
      for (int64_t j = 0; j < l.factor; j += W) {
        const vec<T> x = load(to + j);
        over |= ~(x <= T(0));
        store(to + j, vexp(x));
      }
      for (int j = 0; j < W; ++j) good &= over[j] == 0;
    }
    return good;
  }

  // Fills in the decayed reads and writes, and the products of decays since the block's start.
  void apply_decays() const {
    if (D == Decay::none) return;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < l.factor; j += W) {
        const vec<T> x = load(s.decay + i * l.factor + j);
        store(s.since + i * l.factor + j, i ? x * load(s.since + (i - 1) * l.factor + j) : x);
      }
    for (int64_t r = 0; r < reads(); ++r) {
      const int64_t to = l.decayed_to(r, n);
      for (int64_t j = 0; j < l.keys; j += W) {
        const vec<T> x = load(s.reads + r * l.keys + j);
        store(s.decayed_reads + r * l.keys + j, to < 0 ? x : x * factor(s.since + to * l.factor, j));
      }
    }
    for (int64_t j = 0; j < l.keys; j += W) {
      vec<T> rest = splat(T(1));
      for (int64_t i = n - 1; i >= 0; --i) {
        for (int64_t w = i * l.writes; w < (i + 1) * l.writes; ++w)
          store(s.decayed_writes + w * l.keys + j, rest * load(s.writes + w * l.keys + j));
        rest *= factor(s.decay + i * l.factor, j);
      }
    }
  }

  // Multiplies each entry of a [read][write] matrix by the decay between, and clears those that are not seen.
  void weigh(T* pairs) const {
    for (int64_t r = 0; r < reads(); ++r) {
      T* const row = pairs + r * l.pairs;
      const int64_t seen = l.seen(r, n);
      if (D == Decay::scalar) {
        T product = 1;
        for (int64_t i = l.decayed_to(r, n), w = seen; i >= 0; --i) {
          while (w > i * l.writes) row[--w] *= product;
          product *= s.decay[i * l.factor];
        }
      }
      std::fill(row + seen, row + writes(), T(0));
    }
  }

  // Fills in C.
  void compare() const {
    if (D == Decay::rows) {
      compare_rows();
    } else {
      transpose<T>(writes(), l.keys, {s.writes, l.keys}, {desk.across, l.pairs});
      multiply<T>(reads(), padded(writes(), W), p.keys, {s.reads, l.keys, 1}, {desk.across, l.pairs},
                  {s.pairs, l.pairs});
      weigh(s.pairs);
    }
    for (int64_t i = 0; l.late && i < n; ++i) s.pairs[i * l.pairs + i] = own(i);
  }

  // q^T Diag(bonus) k of a step.
  T own(int64_t i) const {
    T total = 0;
    const T *u = p.bonus + item.head * p.keys, *x = s.reads + i * l.keys, *k = s.writes + i * l.keys;
    for (int64_t j = 0; j < p.keys; ++j) total += x[j] * u[j] * k[j];
    return total;
  }

  // Calls body(read) for each read that sees the decays up to step i and no further.
  template <class Body> void reads_after(int64_t i, const Body& body) const {
    const int64_t solving = i + (F == Form::dplr), out = i + l.late;
    for (int64_t r = solving * l.solves; solving < n && r < (solving + 1) * l.solves; ++r) body(r);
    if (out < n) body(solves() + out);
  }

  // Sets walk[i] to a write under the decays of the steps since its own, through step i.
  void walk_on(int64_t w) const {
    const int64_t first = w / l.writes;
    for (int64_t j = 0; j < l.keys; j += W) {
      vec<T> x = load(s.writes + w * l.keys + j);
      store(desk.walk + first * l.keys + j, x);
      for (int64_t i = first + 1; i < n; ++i) store(desk.walk + i * l.keys + j, x *= load(s.decay + i * l.factor + j));
    }
  }

  void compare_rows() const {
    std::fill_n(s.pairs, reads() * l.pairs, T(0));
    for (int64_t w = 0; w < writes(); ++w) {
      walk_on(w);
      for (int64_t i = w / l.writes; i < n; ++i)
        reads_after(i, [&](int64_t r) {
          if (w < l.seen(r, n)) s.pairs[r * l.pairs + w] = dot(s.reads + r * l.keys, desk.walk + i * l.keys, l.keys);
        });
    }
  }

  // Solves for Y, given the state before the block; `found` then holds Z, the outputs' rows but for their C Y.
  void solve(Rows<const T> state, int64_t rows) const {
    multiply<T>(rows, l.columns, p.keys, {s.decayed_reads, l.keys, 1}, state, {desk.found, l.columns});
    for (int64_t r = 0; r < solves(); ++r) {
      T* const z = desk.found + r * l.columns;
      multiply<T>(1, l.columns, l.seen(r, n), {s.pairs + r * l.pairs, l.pairs, 1}, {s.values, l.columns},
                  {z, l.columns}, {{z, l.columns}});
      const int64_t w = F == Form::dplr ? 2 * r : r;
      for (int64_t j = 0; j < l.columns; j += W) {
        if (F == Form::dplr) {
          store(s.values + w * l.columns + j, load(z + j));
          continue;
        }
        const vec<T> error = load(s.errors + w * l.columns + j) - load(z + j);
        store(s.errors + w * l.columns + j, error);
        store(s.values + w * l.columns + j, error * s.beta[w]);
      }
    }
  }

  // The outputs, left in the last rows of `found`.
  const T* outputs() const {
    T* const z = desk.found + solves() * l.columns;
    multiply<T>(n, l.columns, writes(), {s.pairs + solves() * l.pairs, l.pairs, 1}, {s.values, l.columns},
                {z, l.columns}, {{z, l.columns}});
    return z;
  }

  // Decay over the whole block, for each row of the state.
  Onto<T> decayed(Rows<const T> state) const {
    if (D == Decay::none) return {state};
    return {state, s.since + (n - 1) * l.factor, D == Decay::rows};
  }

  // The state after the block; `after` may be `before`.
  void advance(Rows<const T> before, Rows<T> after) const {
    multiply<T>(p.keys, l.columns, writes(), {s.decayed_writes, 1, l.keys}, {s.values, l.columns}, after,
                decayed(before));
  }
};

// A head's state, or a piece of its columns, between its tensor (K, V) and padded rows.
template <class T> void read_state(const Problem<T>& p, const Item<T>& item, const T* from, Rows<T> to) {
  for (int64_t i = 0; i < p.keys; ++i) pack(from + i * p.values, item.columns, T(1), to.row(i));
}
template <class T> void write_state(const Problem<T>& p, const Item<T>& item, Rows<const T> from, T* to) {
  for (int64_t i = 0; i < p.keys; ++i) unpack(from.row(i), item.columns, T(1), to + i * p.values);
}
template <class T> void clear(const Problem<T>& p, int64_t columns, Rows<T> state) {
  for (int64_t i = 0; i < p.keys; ++i) std::fill_n(state.row(i), columns, T(0));
}

// o (B, L, H, V), the last state (B, H, K, V) and, unless null, the state before each chunk (B, chunks, H, K, V).
template <class T, Decay D, Form F>
int forward_item(const Problem<T>& p, const Item<T>& item, const Cut& cut, T* o, T* last, T* before) {
  const Layout<T, D, F> l(p, cut.width);
  Arena arena;
  Steps<T, D, F>(arena, l, l.steps), Desk<T, D, F>(arena, l), arena.take<T>(p.keys * l.columns);
  if (!arena.reserve()) return kNoMemory;
  const Steps<T, D, F> steps(arena, l, l.steps);
  const Desk<T, D, F> desk(arena, l);
  // Where its rows need no padding, the state lives in the tensor that is returned.
  const bool in_place = item.columns == l.columns;
  const Rows<T> state = in_place ? Rows<T>{last + item.state(p), p.values}
                                 : Rows<T>{arena.take<T>(p.keys * l.columns), l.columns};
  const Rows<const T> now{state.data, state.stride};
  if (p.initial) read_state(p, item, p.initial + item.state(p), state);
  else clear(p, l.columns, state);
  bool good = true;
  for (int64_t t = 0; t < p.length;) {
    if (before && t % p.chunk == 0) {
      const int64_t chunk = item.batch * p.chunks() + t / p.chunk;
      write_state(p, item, now, before + (chunk * p.heads + item.head) * p.keys * p.values + item.first);
    }
    const Block<T, D, F> block{p, l, item, steps, desk, t, p.block(item.batch, t, l.steps)};
    if (p.starts(item.batch, t)) clear(p, l.columns, state);
    good &= block.gather();
    block.apply_decays(), block.compare(), block.solve(now, block.reads());
    const T* const out = block.outputs();
    for (int64_t i = 0; i < block.n; ++i)
      unpack(out + i * l.columns, item.columns, T(1),
             o + ((item.batch * p.length + t + i) * p.heads + item.head) * p.values + item.first);
    block.advance(now, state);
    t += block.n;
  }
  if (!in_place) write_state(p, item, now, last + item.state(p));
  return good ? 0 : kPositiveDecay;
}

// Calls body(item) for every piece of every head; returns the worst status.
template <class T, class Body> int over_items(const Problem<T>& p, const Cut& cut, int threads, const Body& body) {
  constexpr int64_t kGrain = 65536;  // steps times entries of the state that are worth waking a thread for
  const int64_t work = p.length * p.many * p.keys * cut.width;
  std::atomic<int> worst{0};
  parallel_for(p.batch * p.heads * cut.count, threads, kGrain / std::max<int64_t>(1, work) + 1, [&](int64_t i) {
    const int status = body(Item<T>(p, cut, i));
    for (int seen = worst; status > seen && !worst.compare_exchange_weak(seen, status);) {}
  });
  return worst;
}

template <class T, Decay D, Form F> int forward(const Problem<T>& p, T* o, T* last, T* before, int threads) {
  const Cut cut(p);
  return over_items(p, cut, threads,
                    [&](const Item<T>& item) { return forward_item<T, D, F>(p, item, cut, o, last, before); });
}

}  // namespace scanweave
