// Recurrences whose state is a matrix per head, K x V, on the CPU: their common form, and the forward pass.
//
//   S <- Diag(w_t) S + sum_j x_j y_j^T,   o_t = q_t^T S
//
// y_j is a value (plain), beta (v - x_j^T S) (delta rule), or a^T S (the rank-one part of dplr). Time goes in blocks of
// a few steps. With S0 the state before a block, P(s, t) the product of the decays of steps s + 1 ... t and C the
// products of a block's reads with its writes under the decay between them, everything is a small matrix product:
//
//   Z = (reads decayed from the block's start) S0 + C Y,   S = Diag(P) S0 + (writes decayed to the block's end)^T Y
//
// where Y is solved for downwards, since C is lower triangular. Decays are products of numbers in [0, 1]: nothing
// overflows, and a decay of 0 needs no care. A step at which the state is reset begins a block.
#pragma once
#include "matrix_layout.h"

namespace scanweave {

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
  T *across;   // writes transposed, [key][write]
  T *found;    // Z: [read][column]
  T *between;  // (scalar) the decays between each write and a step, [write]
  T *walk;     // (rows) one write under every step's decay, [step][key]

  Desk(Arena& arena, const Layout<T, D, F>& l)
      : across(arena.take<T>(l.keys * l.pairs)), found(arena.take<T>(l.steps * l.reads * l.columns)),
        between(arena.take<T>(D == Decay::scalar ? l.pairs : 0)),
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
    bool good = true;
    if (D == Decay::scalar) {
      for (int64_t i = 0; i < n; ++i) desk.between[i] = *p.decay.at(item.batch, time + i, item.head);
      std::fill(desk.between + n, desk.between + padded(n, W), T(0));
      good = powers(desk.between, padded(n, W));
      for (int64_t i = 0; i < n; ++i) store(s.decay + i * l.factor, splat(desk.between[i]));
    }
    for (int64_t i = 0; D == Decay::rows && i < n; ++i) {
      pack(p.decay.at(item.batch, time + i, item.head), p.keys, T(1), s.decay + i * l.factor);
      good &= powers(s.decay + i * l.factor, l.factor);
    }
    return good;
  }

  // Replaces logarithms by what they are of; returns whether none is above 0 or NaN.
  static bool powers(T* x, int64_t size) {
    typename Vec<T>::mask over{};
    for (int64_t j = 0; j < size; j += W) {
      const vec<T> log = load(x + j);
      over |= ~(log <= T(0));
      store(x + j, vexp(log));
    }
    bool good = true;
    for (int j = 0; j < W; ++j) good &= over[j] == 0;
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
    for (int64_t i = 0; D == Decay::scalar && i < n; ++i) {
      const vec<T> decay = load(s.decay + i * l.factor);
      for (int64_t j = 0; j < i * l.writes; j += W) store(desk.between + j, load(desk.between + j) * decay);
      std::fill_n(desk.between + i * l.writes, l.writes, T(1));
      reads_after(i, [&](int64_t r) {
        T* const row = pairs + r * l.pairs;
        for (int64_t j = 0; j < (i + 1) * l.writes; j += W) store(row + j, load(row + j) * load(desk.between + j));
      });
    }
    for (int64_t r = 0; r < reads(); ++r)
      std::fill(pairs + r * l.pairs + l.seen(r, n), pairs + r * l.pairs + writes(), T(0));
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

template <class T, Decay D, Form F> int forward(const Problem<T>& p, T* o, T* last, T* before, int threads) {
  const Cut cut(p);
  return over_items(p, cut, threads,
                    [&](const Item<T>& item) { return forward_item<T, D, F>(p, item, cut, o, last, before); });
}

}  // namespace scanweave
