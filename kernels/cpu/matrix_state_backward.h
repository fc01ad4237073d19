// The way back through a recurrence with a matrix state: chunk by chunk, each recomputed from the state before it.
//
// Every product of a block has two of its own on the way back. The gradient of a decay's logarithm is a sum of what
// passed through that decay, over each product that it stands in: no difference of large sums, exact where a decay is
// 0.
#pragma once
#include <new>
#include <type_traits>

#include "matrix_state.h"

namespace scanweave {

// Where the gradients go: contiguous, shaped as the arguments, (pieces, ...) where pieces of a head share an argument;
// those of `bonus` and of constant decays are (pieces, B, H[, K]). Null where the argument is.
template <class T> struct Gradients {
  T *q, *k, *v, *a, *b, *beta, *decay, *bonus, *initial;
};

// The working set of one item on its way back. `d` before a name: the gradient of what stands there.
template <class T, Decay D, Form F> struct BackDesk {
  Steps<T, D, F> chunk;
  Desk<T, D, F> desk;
  T *states, *carry;                           // before each block of the chunk; the gradient of the state after it
  T *state_across, *carry_across;              // [column][key]
  T* values_across;                            // [column][write]
  T *dfound, *dvalues;                         // of Z and Y
  T *dreads, *dwrites, *dpairs, *dproduct;     // of the decayed reads and writes, C, and the whole block's decay
  T *ddecay, *factors, *down, *dbonus;         // [step][factor]; [read or write]; C's diagonal; [key]
  int64_t* starts;                             // the blocks' first steps

  BackDesk(Arena& m, const Layout<T, D, F>& l, const Problem<T>& p, int64_t blocks)
      : chunk(m, l, p.chunk), desk(m, l), states(m.take<T>(blocks * p.keys * l.columns)),
        carry(m.take<T>(p.keys * l.columns)), state_across(m.take<T>(l.columns * l.keys)),
        carry_across(m.take<T>(l.columns * l.keys)), values_across(m.take<T>(l.columns * l.pairs)),
        dfound(m.take<T>(l.steps * l.reads * l.columns)), dvalues(m.take<T>(l.steps * l.writes * l.columns)),
        dreads(m.take<T>(l.steps * l.reads * l.keys)), dwrites(m.take<T>(l.steps * l.writes * l.keys)),
        dpairs(m.take<T>(l.steps * l.reads * l.pairs)), dproduct(m.take<T>(l.keys)),
        ddecay(m.take<T>(l.steps * l.factor)), factors(m.take<T>(l.steps * (l.reads + l.writes))),
        down(m.take<T>(l.steps)), dbonus(m.take<T>(l.keys)), starts(m.take<int64_t>(blocks + 1)) {}
};

template <class T, Decay D, Form F> struct Back {
  const Problem<T>& p;
  const Layout<T, D, F>& l;
  const Item<T>& item;
  const BackDesk<T, D, F>& m;
  const Gradients<T>& d;
  bool constant;

  static constexpr int W = width<T>;
  using Part = Block<T, D, F>;

  Rows<T> carry() const { return {m.carry, l.columns}; }
  Rows<T> state(int64_t i) const { return {m.states + i * p.keys * l.columns, l.columns}; }
  Part part(int64_t i) const {
    const int64_t t = m.starts[i];
    return {p, l, item, m.chunk.from(l, t % p.chunk), m.desk, t, m.starts[i + 1] - t};
  }

  void run(const T* before, const Sequence<T>& into, const T* dlast) const {
    if (dlast) read_state(p, item, dlast + item.state(p), carry());
    else clear(p, l.columns, carry());
    std::fill_n(m.dbonus, l.keys, T(0));
    T whole = 0;
    for (int64_t c = p.chunks() - 1; c >= 0; --c) {
      const int64_t chunk = (item.batch * p.chunks() + c) * p.heads + item.head;
      read_state(p, item, before + chunk * p.keys * p.values + item.first, state(0));
      for (int64_t i = recompute(c * p.chunk, std::min(p.length, (c + 1) * p.chunk)) - 1; i >= 0; --i) {
        const Part block = part(i);
        values_back(block, into);
        state_back(block, state(i));
        for (int64_t j = 0; l.late && j < block.n; ++j) m.down[j] = m.dpairs[j * l.pairs + j];
        if (D == Decay::rows) keys_back_rows(block);
        else keys_back(block);
        if (l.late) own_back(block);
        scatter(block);
        for (int64_t j = 0; constant && j < block.n; ++j) whole += m.ddecay[j];
      }
    }
    write_state(p, item, Rows<const T>{m.carry, l.columns}, d.initial + item.state(p));
    const int64_t place = (item.piece * p.batch + item.batch) * p.heads + item.head;
    if (constant) d.decay[place] = whole;
    if (l.late) unpack(m.dbonus, p.keys, T(1), d.bonus + place * p.keys);
  }

  // Goes forward through a chunk and keeps the state before each block; returns the number of blocks.
  int64_t recompute(int64_t t, int64_t end) const {
    int64_t i = 0;
    for (; t < end; ++i) {
      m.starts[i] = t, m.starts[i + 1] = t += p.block(item.batch, t, l.steps);
      const Rows<const T> now{state(i).data, l.columns};
      if (p.starts(item.batch, m.starts[i])) clear(p, l.columns, state(i));
      const Part block = part(i);
      block.gather(), block.apply_decays(), block.compare(), block.solve(now, block.solves());
      if (t < end) block.advance(now, state(i + 1));
    }
    return i;
  }

  // The gradients of Z and Y.
  void values_back(const Part& block, const Sequence<T>& into) const {
    const int64_t n = block.n, solves = block.solves(), columns = l.columns;
    T* const out = m.dfound + solves * columns;
    for (int64_t i = 0; i < n; ++i) {
      if (into.data)
        pack(into.at(item.batch, block.time + i, item.head) + item.first, item.columns, T(1), out + i * columns);
      else std::fill_n(out + i * columns, columns, T(0));
    }
    const Rows<T> values{m.dvalues, columns};
    const Onto<T> more{{m.dvalues, columns}};
    multiply<T>(block.writes(), columns, p.keys, {block.s.decayed_writes, l.keys, 1}, {m.carry, columns}, values);
    multiply<T>(block.writes(), columns, n, {block.s.pairs + solves * l.pairs, 1, l.pairs}, {out, columns}, values,
                more);
    for (int64_t r = solves - 1; r >= 0; --r) {
      const int64_t w = F == Form::dplr ? 2 * r : r;
      const T factor = F == Form::dplr ? T(1) : -block.s.beta[w];
      T* const row = m.dfound + r * columns;
      for (int64_t j = 0; j < columns; j += W) store(row + j, load(values.row(w) + j) * factor);
      multiply<T>(l.seen(r, n), columns, 1, {block.s.pairs + r * l.pairs, 1, 0}, {row, columns}, values, more);
    }
  }

  // The gradients of what Z and the next state are products of; `carry` becomes the gradient of the state before.
  void state_back(const Part& block, Rows<T> state) const {
    const int64_t columns = item.columns, reads = block.reads(), writes = block.writes();
    transpose<T>(p.keys, l.columns, {state.data, l.columns}, {m.state_across, l.keys});
    transpose<T>(p.keys, l.columns, {m.carry, l.columns}, {m.carry_across, l.keys});
    transpose<T>(writes, l.columns, {block.s.values, l.columns}, {m.values_across, l.pairs});
    multiply<T>(reads, l.keys, columns, {m.dfound, l.columns, 1}, {m.state_across, l.keys}, {m.dreads, l.keys});
    multiply<T>(writes, l.keys, columns, {block.s.values, l.columns, 1}, {m.carry_across, l.keys},
                {m.dwrites, l.keys});
    multiply<T>(reads, padded(writes, W), columns, {m.dfound, l.columns, 1}, {m.values_across, l.pairs},
                {m.dpairs, l.pairs});
    for (int64_t j = 0; D != Decay::none && j < l.keys; j += W) {
      vec<T> total{};
      for (int64_t v = 0; v < columns; ++v)
        total += load(m.state_across + v * l.keys + j) * load(m.carry_across + v * l.keys + j);
      store(m.dproduct + j, total * block.factor(block.s.since + (block.n - 1) * l.factor, j));
    }
    multiply<T>(p.keys, l.columns, reads, {block.s.decayed_reads, 1, l.keys}, {m.dfound, l.columns}, carry(),
                block.decayed({m.carry, l.columns}));
    if (p.starts(item.batch, block.time)) clear(p, l.columns, carry());
  }

  // From the gradients of decayed reads and writes and of C to those of reads, writes and decays: one decay a step.
  void keys_back(const Part& block) const {
    const int64_t n = block.n, reads = block.reads(), writes = block.writes();
    T* const tails = m.factors + reads;
    if (D == Decay::scalar) {
      for (int64_t r = 0; r < reads; ++r) {
        const int64_t to = l.decayed_to(r, n);
        m.factors[r] = to < 0 ? T(1) : block.s.since[to * l.factor];
      }
      T tail = 1;
      for (int64_t i = n - 1; i >= 0; --i) {
        std::fill_n(tails + i * l.writes, l.writes, tail);
        tail *= block.s.decay[i * l.factor];
      }
      decays_back(block);
    }
    block.weigh(m.dpairs);
    const T *const by_read = D == Decay::none ? nullptr : m.factors, *const by_write = by_read ? tails : nullptr;
    multiply<T>(reads, l.keys, writes, {m.dpairs, l.pairs, 1}, {block.s.writes, l.keys}, {m.dreads, l.keys},
                {{m.dreads, l.keys}, by_read, 1});
    multiply<T>(writes, l.keys, reads, {m.dpairs, 1, l.pairs}, {block.s.reads, l.keys}, {m.dwrites, l.keys},
                {{m.dwrites, l.keys}, by_write, 1});
  }

  void decays_back(const Part& block) const {
    const int64_t n = block.n;
    std::fill_n(m.ddecay, n, T(0));
    for (int64_t r = 0; r < block.reads(); ++r) {
      T passed = 0;
      for (int64_t i = 0, w = 0; i < l.decayed_to(r, n); ++i) {
        for (const int64_t end = std::min(l.seen(r, n), (i + 1) * l.writes); w < end; ++w)
          passed += m.dpairs[r * l.pairs + w] * block.s.pairs[r * l.pairs + w];
        m.ddecay[i + 1] += passed;
      }
    }
    T passed = 0;
    for (int64_t j = 0; j < l.keys; ++j) passed += m.dproduct[j];
    for (int64_t i = n - 1; i >= 0; --i) {
      block.reads_after(i, [&](int64_t r) {
        passed += dot(m.dreads + r * l.keys, block.s.decayed_reads + r * l.keys, l.keys);
      });
      m.ddecay[i] += passed;
    }
    passed = 0;
    for (int64_t i = 0; i < n; ++i) {
      m.ddecay[i] += passed;
      for (int64_t w = i * l.writes; w < (i + 1) * l.writes; ++w)
        passed += dot(m.dwrites + w * l.keys, block.s.decayed_writes + w * l.keys, l.keys);
    }
  }

  // The same with a decay for each row of the state.
  void keys_back_rows(const Part& block) const {
    const int64_t n = block.n, keys = l.keys;
    block.weigh(m.dpairs);
    for (int64_t j = 0; j < keys; j += W) {
      vec<T> passed = load(m.dproduct + j);
      for (int64_t i = n - 1; i >= 0; --i) {
        block.reads_after(i, [&](int64_t r) {
          T* const dread = m.dreads + r * keys + j;
          passed += load(dread) * load(block.s.decayed_reads + r * keys + j);
          store(dread, load(dread) * load(block.s.since + i * keys + j));
        });
        store(m.ddecay + i * keys + j, passed);
      }
      passed = vec<T>{};
      for (int64_t i = 0; i < n; ++i) {
        store(m.ddecay + i * keys + j, load(m.ddecay + i * keys + j) + passed);
        for (int64_t w = i * l.writes; w < (i + 1) * l.writes; ++w)
          passed += load(m.dwrites + w * keys + j) * load(block.s.decayed_writes + w * keys + j);
      }
      vec<T> tail = splat(T(1));
      for (int64_t i = n - 1; i >= 0; --i) {
        for (int64_t w = i * l.writes; w < (i + 1) * l.writes; ++w)
          store(m.dwrites + w * keys + j, load(m.dwrites + w * keys + j) * tail);
        tail *= load(block.s.decay + i * keys + j);
      }
    }
    for (int64_t w = 0; w < block.writes(); ++w) pairs_back(block, w);
  }

  // One write's products with the reads after it, back from the last.
  void pairs_back(const Part& block, int64_t w) const {
    const int64_t first = w / l.writes, keys = l.keys;
    block.walk_on(w);
    for (int64_t j = 0; j < keys; j += W) {
      vec<T> arrived{};
      for (int64_t i = block.n - 1; i >= first; --i) {
        const vec<T> x = load(m.desk.walk + i * keys + j);
        block.reads_after(i, [&](int64_t r) {
          const T dpair = m.dpairs[r * l.pairs + w];
          T* const dread = m.dreads + r * keys + j;
          store(dread, load(dread) + x * dpair);
          arrived += load(block.s.reads + r * keys + j) * dpair;
        });
        if (i == first) break;
        T* const ddecay = m.ddecay + i * keys + j;
        store(ddecay, load(ddecay) + arrived * x);
        arrived *= load(block.s.decay + i * keys + j);
      }
      store(m.dwrites + w * keys + j, load(m.dwrites + w * keys + j) + arrived);
    }
  }

  // The products q^T Diag(bonus) k.
  void own_back(const Part& block) const {
    T* const u = m.desk.across;
    pack(p.bonus + item.head * p.keys, p.keys, T(1), u);
    for (int64_t i = 0; i < block.n; ++i)
      for (int64_t j = 0; j < l.keys; j += W) {
        const int64_t at = i * l.keys + j;
        const vec<T> q = load(block.s.reads + at), k = load(block.s.writes + at), weight = load(u + j) * m.down[i];
        store(m.dreads + at, load(m.dreads + at) + weight * k);
        store(m.dwrites + at, load(m.dwrites + at) + weight * q);
        store(m.dbonus + j, load(m.dbonus + j) + q * k * m.down[i]);
      }
  }

  // Writes a block's gradients to their tensors.
  void scatter(const Part& block) const {
    const int64_t solves = block.solves(), total = p.batch * p.length * p.heads;
    for (int64_t i = 0; i < block.n; ++i) {
      const int64_t step = item.batch * p.length + block.time + i, at = step * p.heads + item.head;
      const int64_t shared = item.piece * total + at;
      unpack(m.dreads + (solves + i) * l.keys, p.keys, T(p.scale), d.q + shared * p.keys);
      if (D == Decay::rows) unpack(m.ddecay + i * l.keys, p.keys, T(1), d.decay + shared * p.keys);
      if (D == Decay::scalar && !constant) d.decay[shared] = m.ddecay[i];
      if (F == Form::dplr) {
        unpack(m.dreads + i * l.keys, p.keys, T(1), d.a + shared * p.keys);
        unpack(m.dwrites + 2 * i * l.keys, p.keys, T(1), d.b + shared * p.keys);
        unpack(m.dwrites + (2 * i + 1) * l.keys, p.keys, T(1), d.k + shared * p.keys);
        unpack(m.dvalues + (2 * i + 1) * l.columns, item.columns, T(1), d.v + at * p.values + item.first);
        continue;
      }
      for (int64_t j = 0; j < l.writes; ++j) {
        const int64_t w = i * l.writes + j, one = (step * p.many + j) * p.heads + item.head;
        const int64_t of_piece = item.piece * total * p.many + one;
        T *const dkey = m.dwrites + w * l.keys, *const dvalue = m.dvalues + w * l.columns;
        if (F == Form::delta) {
          for (int64_t x = 0; x < l.keys; x += W) store(dkey + x, load(dkey + x) + load(m.dreads + w * l.keys + x));
          d.beta[of_piece] = dot(dvalue, block.s.errors + w * l.columns, l.columns);
        }
        unpack(dkey, p.keys, T(1), d.k + of_piece * p.keys);
        unpack(dvalue, item.columns, F == Form::delta ? block.s.beta[w] : T(1), d.v + one * p.values + item.first);
      }
    }
  }
};

template <class T, Decay D, Form F>
int backward_item(const Problem<T>& p, const Item<T>& item, const Cut& cut, const T* before, const Sequence<T>& into,
                  const T* dlast, const Gradients<T>& d, bool constant) {
  const Layout<T, D, F> l(p, cut.width);
  int64_t most = 1;  // blocks in a chunk: resets add some
  for (int64_t t = 0, inside = 0; t < p.length; t += p.block(item.batch, t, l.steps)) {
    inside = t % p.chunk ? inside + 1 : 1;
    most = std::max(most, inside);
  }
  Arena arena;
  BackDesk<T, D, F>(arena, l, p, most);
  if (!arena.reserve()) return kNoMemory;
  const BackDesk<T, D, F> desk(arena, l, p, most);
  Back<T, D, F>{p, l, item, desk, d, constant}.run(before, into, dlast);
  return 0;
}

template <class T, Decay D, Form F>
int backward(const Problem<T>& p, const T* before, const Sequence<T>& into, const T* dlast, const Gradients<T>& d,
             int threads) {
  const Cut cut(p);
  const bool constant = p.kind == kConstant;
  const int64_t steps = p.batch * p.length * p.heads;
  struct Part {
    T* Gradients<T>::*where;
    int64_t copies, size;
  };
  const Part parts[] = {
      {&Gradients<T>::q, cut.count, steps * p.keys},
      {&Gradients<T>::k, cut.count, steps * p.many * p.keys},
      {&Gradients<T>::a, cut.count, steps * p.keys},
      {&Gradients<T>::b, cut.count, steps * p.keys},
      {&Gradients<T>::beta, cut.count, steps * p.many},
      {&Gradients<T>::decay, constant ? cut.count * p.batch : cut.count,
       constant ? p.heads : steps * (D == Decay::rows ? p.keys : 1)},
      {&Gradients<T>::bonus, cut.count * p.batch, p.heads * p.keys},
  };
  int64_t room = 0;
  for (const Part& part : parts) room += d.*part.where && part.copies > 1 ? part.copies * part.size : 0;
  const std::unique_ptr<T[]> copies(new (std::nothrow) T[room]);
  if (!copies) return kNoMemory;
  Gradients<T> own = d;
  T* next = copies.get();
  for (const Part& part : parts)
    if (d.*part.where && part.copies > 1) own.*part.where = next, next += part.copies * part.size;
  const int status = over_items(p, cut, threads, [&](const Item<T>& item) {
    return backward_item<T, D, F>(p, item, cut, before, into, dlast, own, constant);
  });
  for (const Part& part : parts)
    if (own.*part.where != d.*part.where)
      add_up(own.*part.where, part.copies, part.size, d.*part.where, threads);
  return status;
}

// Calls body with the kind of decay as a constant: of the kinds that a form takes.
template <Form F, class Body> int with_decay(int64_t kind, const Body& body) {
  using Scalar = std::integral_constant<Decay, Decay::scalar>;
  if constexpr (F == Form::delta)
    return kind == kNoDecay ? body(std::integral_constant<Decay, Decay::none>()) : body(Scalar());
  if constexpr (F == Form::plain)
    if (kind != kPerRow) return body(Scalar());
  if constexpr (F != Form::delta) return body(std::integral_constant<Decay, Decay::rows>());
}

}  // namespace scanweave

// Exports NAME_forward_f32, NAME_backward_f32 and the same for f64. They return 0; 1 where a decay's logarithm is above
// 0 or NaN; 2 where memory ran out.
#define SCANWEAVE_MATRIX_STATE(NAME, FORM)             \
  SCANWEAVE_MATRIX_STATE_OF(NAME, FORM, f32, float)    \
  SCANWEAVE_MATRIX_STATE_OF(NAME, FORM, f64, double)
#define SCANWEAVE_MATRIX_STATE_OF(NAME, FORM, TYPE, T)                                                                \
  SCANWEAVE_EXPORT int scanweave_##NAME##_forward_##TYPE(const scanweave::Problem<T>* p, T* o, T* last, T* before,    \
                                                         int threads) {                                               \
    return scanweave::with_decay<FORM>(p->kind, [&](auto decay) {                                                     \
      return scanweave::forward<T, decay(), FORM>(*p, o, last, before, threads);                                      \
    });                                                                                                               \
  }                                                                                                                   \
  SCANWEAVE_EXPORT int scanweave_##NAME##_backward_##TYPE(                                                            \
      const scanweave::Problem<T>* p, const scanweave::Sequence<T>* into, const T* before, const T* dlast,            \
      const scanweave::Gradients<T>* d, int threads) {                                                                \
    return scanweave::with_decay<FORM>(p->kind, [&](auto decay) {                                                     \
      return scanweave::backward<T, decay(), FORM>(*p, before, *into, dlast, *d, threads);                            \
    });                                                                                                               \
  }
