// selective_scan on the CPU: vectors over channels, the N states of a vector of channels in L1.
//
// Work is cut into slices: some channels of one group in one batch entry, which one thread takes through time chunk by
// chunk. The forward pass keeps the state before each chunk, the backward pass recomputes a chunk's states and decays
// from it. How work is cut depends on the shape alone, and what slices add up is added in their order: the number of
// threads changes no bit of any result.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "activations.h"
#include "parallel.h"
#include "rows.h"
#include "simd.h"

namespace scanweave {
namespace {

constexpr int64_t kGrain = 16384;  // steps times channels times states that are worth waking a thread for
constexpr int kNonFinite = 1, kNoMemory = 2, kNoOrder = 3;

// A sequence (B, L, G, K): strides over batch, place and group; what follows lies side by side. Null data: absent.
template <class T> struct Groups {
  const T* data;
  int64_t batch, place, group;
  const T* at(int64_t b, int64_t t, int64_t g) const { return data + b * batch + t * place + g * group; }
};

template <class T> struct Problem {
  Groups<T> u, dt, B, C, z;
  const T *A, *D, *dt_bias, *initial;
  const uint8_t* reset;
  const int64_t* orders;
  int64_t batch, length, channels, groups, n, chunk;
  bool softplus, is_signed;

  int64_t chunks() const { return (length + chunk - 1) / chunk; }
  bool starts(int64_t b, int64_t t) const { return reset && reset[b * length + t]; }
  // Where a group is at its step t.
  int64_t place(int64_t group, int64_t t) const { return orders ? orders[group * length + t] : t; }
};

// Whether every group's order visits each place once.
template <class T> bool orders_fit(const Problem<T>& p) {
  std::vector<uint8_t> seen(p.length);
  for (int64_t g = 0; p.orders && g < p.groups; ++g) {
    std::fill(seen.begin(), seen.end(), 0);
    for (int64_t t = 0; t < p.length; ++t) {
      const int64_t place = p.place(g, t);
      if (place < 0 || place >= p.length || seen[place]++) return false;
    }
  }
  return true;
}

// How the channels of each group are cut: into slices of `width` channels, `per_group` of them.
struct Cut {
  int64_t width, per_group, slices;

  template <class T> explicit Cut(const Problem<T>& p) {
    const int64_t in_group = p.channels / p.groups;
    // Each slice has sums of its own for the gradients of B and C: 2 n numbers a step, kept well below its channels'.
    width = std::max<int64_t>(64, (4 * p.n + 15) / 16 * 16);
    while (width > 16 && p.batch * p.groups * ((in_group + width - 1) / width) < 16) width = (width / 2 + 15) / 16 * 16;
    per_group = (in_group + width - 1) / width;
    slices = p.groups * per_group;
  }
};

template <class T> struct Slice {
  int64_t b, index, group, offset, first, count;

  Slice(const Problem<T>& p, const Cut& cut, int64_t item) {
    const int64_t in_group = p.channels / p.groups;
    b = item / cut.slices;
    index = item % cut.per_group;
    group = item % cut.slices / cut.per_group;
    offset = index * cut.width;
    first = group * in_group + offset;
    count = std::min(cut.width, in_group - offset);
  }
  int64_t blocks() const { return (count + width<T> - 1) / width<T>; }
  // A block's first channel, among all and in its group.
  int64_t channel(int64_t block) const { return first + block * width<T>; }
  int64_t within(int64_t block) const { return offset + block * width<T>; }
  int lanes(int64_t block) const { return static_cast<int>(std::min<int64_t>(width<T>, count - block * width<T>)); }
};

// Scratch memory, zeroed, handed out in whole vectors at aligned addresses.
template <class T> class Scratch {
 public:
  explicit Scratch(int64_t vectors)
      : size_(vectors * width<T>),
        data_(static_cast<T*>(::operator new[](size_ * sizeof(T), std::align_val_t(kVectorBytes), std::nothrow))),
        next_(data_.get()) {
    if (data_) std::fill_n(data_.get(), size_, T(0));
  }
  explicit operator bool() const { return data_ != nullptr; }
  T* take(int64_t vectors) {
    T* const found = next_;
    next_ += vectors * width<T>;
    return found;
  }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete[](p, std::align_val_t(kVectorBytes)); }
  };
  int64_t size_;
  std::unique_ptr<T[], Free> data_;
  T* next_;
};

// (channels, n) in memory to and from [n][lane].
template <class T> void gather(const T* from, int64_t n, int lanes, T scale, T* to) {
  for (int c = 0; c < lanes; ++c)
    for (int64_t i = 0; i < n; ++i) to[i * width<T> + c] = from[c * n + i] * scale;
}
template <class T> void scatter(const T* from, int64_t n, int lanes, T scale, T* to) {
  for (int c = 0; c < lanes; ++c)
    for (int64_t i = 0; i < n; ++i) to[c * n + i] = from[i * width<T> + c] * scale;
}

// What a vector of channels needs of one chunk before its recurrence: delta and delta u, and for the way back the
// derivative of softplus in `slope` (or null), [step][lane].
template <class T>
void step_inputs(const Problem<T>& p, const Slice<T>& s, int64_t block, int64_t start, int64_t steps, T* delta, T* x,
                 T* slope) {
  const int lanes = s.lanes(block);
  const int64_t k = s.within(block);
  const vec<T> bias = p.dt_bias ? read(p.dt_bias + s.channel(block), lanes) : vec<T>{};
  for (int64_t t = 0; t < steps; ++t) {
    const int64_t place = p.place(s.group, start + t);
    vec<T> d = read(p.dt.at(s.b, place, s.group) + k, lanes) + bias;
    if (slope) store(slope + t * width<T>, logistic(d));
    if (p.softplus) d = softplus(d);
    store(delta + t * width<T>, d);
    store(x + t * width<T>, d * read(p.u.at(s.b, place, s.group) + k, lanes));
  }
}

// One step of the recurrence for a vector of channels: h = a * before + x B; returns C . h. With `KEEP` the exponentials
// are written to `powers`.
template <class T, bool SIGNED, bool KEEP>
inline vec<T> advance(const T* A, vec<T> delta, vec<T> x, const T* B, const T* C, int64_t n, const T* before, T* h,
                      T* powers) {
  vec<T> sum{};
  for (int64_t i = 0; i < n; ++i) {
    const int64_t at = i * width<T>;
    vec<T> a = Power<T>::base(delta * load(A + at));
    if (KEEP) store(powers + at, a);
    if (SIGNED) a = a + a - T(1);
    const vec<T> next = a * load(before + at) + x * B[i];
    store(h + at, next);
    sum += next * C[i];
  }
  return sum;
}

// Takes one slice through time; `before` (B, chunks, N, C) may be null. Returns whether its last state is finite.
template <class T, bool SIGNED>
int forward_slice(const Problem<T>& p, const Slice<T>& s, T* y, T* last, T* before) {
  constexpr int W = width<T>;
  const int64_t row = p.n * W, blocks = s.blocks();
  Scratch<T> scratch(2 * blocks * p.n + p.n + 2 * p.chunk);
  if (!scratch) return kNoMemory;
  T *const A = scratch.take(blocks * p.n), *const h = scratch.take(blocks * p.n), *const zeros = scratch.take(p.n);
  T *const delta = scratch.take(p.chunk), *const x = scratch.take(p.chunk);
  for (int64_t j = 0; j < blocks; ++j) {
    const int64_t c = s.channel(j);
    gather(p.A + c * p.n, p.n, s.lanes(j), Power<T>::scale, A + j * row);
    if (p.initial) gather(p.initial + (s.b * p.channels + c) * p.n, p.n, s.lanes(j), T(1), h + j * row);
  }
  for (int64_t k = 0; k < p.chunks(); ++k) {
    const int64_t start = k * p.chunk, steps = std::min(p.chunk, p.length - start);
    for (int64_t j = 0; j < blocks; ++j) {
      const int64_t c = s.channel(j), within = s.within(j);
      const int lanes = s.lanes(j);
      T* const state = h + j * row;
      for (int64_t i = 0; before && i < p.n; ++i)
        write(before + ((s.b * p.chunks() + k) * p.n + i) * p.channels + c, load(state + i * W), lanes);
      step_inputs<T>(p, s, j, start, steps, delta, x, nullptr);
      const vec<T> D = p.D ? read(p.D + c, lanes) : vec<T>{};
      for (int64_t t = 0; t < steps; ++t) {
        const int64_t place = p.place(s.group, start + t);
        const T *B = p.B.at(s.b, place, s.group), *C = p.C.at(s.b, place, s.group);
        const T* const from = p.starts(s.b, start + t) ? zeros : state;
        vec<T> out = advance<T, SIGNED, false>(A + j * row, load(delta + t * W), load(x + t * W), B, C, p.n, from,
                                               state, nullptr);
        if (p.D) out += D * read(p.u.at(s.b, place, s.group) + within, lanes);
        if (p.z.data) {
          const vec<T> z = read(p.z.at(s.b, place, s.group) + within, lanes);
          out *= z * logistic(z);
        }
        write(y + (s.b * p.length + place) * p.channels + c, out, lanes);
      }
    }
  }
  bool finite = true;
  for (int64_t j = 0; j < blocks; ++j) {
    scatter(h + j * row, p.n, s.lanes(j), T(1), last + (s.b * p.channels + s.channel(j)) * p.n);
    for (int64_t i = 0; i < row; ++i) finite &= h[j * row + i] - h[j * row + i] == T(0);
  }
  return finite ? 0 : kNonFinite;
}

// Where the gradients go. dB and dC have room for each slice's own sums (per_group, B, L, G, N), dA (B, C, N), dD and
// ddt_bias (B, C): added up afterwards.
template <class T> struct Gradients {
  T *u, *dt, *A, *B, *C, *D, *z, *dt_bias, *initial;
};

// The working set of one slice on its way back.
template <class T> struct Back {
  T *A, *carry, *dA, *dD, *dbias;      // [block][n][lane], the last two [block][lane]
  T *states, *powers, *sum_B, *sum_C;  // [step][n][lane]; states from the one before the chunk on
  T *zeros, *dA_chunk;                 // [n][lane]
  T *delta, *x, *slope;                // [step][lane]: delta, delta u, the derivative of softplus
  T *out, *dout, *gate;                // [step][lane]: C . h, its gradient, 1 / (1 + exp(-z))

  static int64_t vectors(const Problem<T>& p, int64_t blocks) {
    return blocks * (3 * p.n + 2) + p.n * (4 * p.chunk + 3) + 6 * p.chunk;
  }
  Back(Scratch<T>& s, const Problem<T>& p, int64_t blocks) {
    A = s.take(blocks * p.n), carry = s.take(blocks * p.n), dA = s.take(blocks * p.n);
    dD = s.take(blocks), dbias = s.take(blocks);
    states = s.take((p.chunk + 1) * p.n), powers = s.take(p.chunk * p.n);
    sum_B = s.take(p.chunk * p.n), sum_C = s.take(p.chunk * p.n);
    zeros = s.take(p.n), dA_chunk = s.take(p.n);
    delta = s.take(p.chunk), x = s.take(p.chunk), slope = s.take(p.chunk);
    out = s.take(p.chunk), dout = s.take(p.chunk), gate = s.take(p.chunk);
  }
};

// The gradients that one step back gives for delta u, and for delta through the decay (less a constant factor).
template <class T> struct StepGradient {
  vec<T> x, delta;
};

// One step back: `carry` comes as the gradient of h_t from later steps, and leaves as that of h_{t-1}.
template <class T, bool SIGNED>
inline StepGradient<T> retreat(const T* __restrict A, vec<T> delta, vec<T> x, vec<T> dout, const T* __restrict B,
                               const T* __restrict C, int64_t n, const T* before, const T* h,
                               const T* __restrict powers, T* __restrict carry, T* __restrict dA,
                               T* __restrict sum_B, T* __restrict sum_C) {
  vec<T> dx{}, ddelta{};
  for (int64_t i = 0; i < n; ++i) {
    const int64_t at = i * width<T>;
    const vec<T> g = load(carry + at) + dout * C[i], power = load(powers + at);
    store(sum_C + at, load(sum_C + at) + dout * load(h + at));
    store(sum_B + at, load(sum_B + at) + x * g);
    dx += g * B[i];
    const vec<T> slope = g * power;
    store(carry + at, SIGNED ? slope + slope - g : slope);
    const vec<T> exponent = slope * load(before + at);
    ddelta += exponent * load(A + at);
    store(dA + at, load(dA + at) + exponent * delta);
  }
  return {dx, ddelta};
}

// Recomputes the states of one chunk for a vector of channels, then goes back through it.
template <class T, bool SIGNED>
void backward_chunk(const Problem<T>& p, const Slice<T>& s, int64_t k, int64_t block, const T* before, Groups<T> dy,
                    const Back<T>& w, const Gradients<T>& d) {
  constexpr int W = width<T>;
  const int64_t row = p.n * W, start = k * p.chunk, steps = std::min(p.chunk, p.length - start);
  const int64_t c = s.channel(block), within = s.within(block);
  const int lanes = s.lanes(block);
  const T* const A = w.A + block * row;
  T* const carry = w.carry + block * row;
  for (int64_t i = 0; i < p.n; ++i)
    store(w.states + i * W, read(before + ((s.b * p.chunks() + k) * p.n + i) * p.channels + c, lanes));
  step_inputs(p, s, block, start, steps, w.delta, w.x, p.softplus ? w.slope : nullptr);
  for (int64_t t = 0; t < steps; ++t) {
    const int64_t place = p.place(s.group, start + t);
    const T *B = p.B.at(s.b, place, s.group), *C = p.C.at(s.b, place, s.group);
    const T* const from = p.starts(s.b, start + t) ? w.zeros : w.states + t * row;
    const vec<T> out = advance<T, SIGNED, true>(A, load(w.delta + t * W), load(w.x + t * W), B, C, p.n, from,
                                                w.states + (t + 1) * row, w.powers + t * row);
    vec<T> dout = dy.data ? read(dy.at(s.b, place, s.group) + within, lanes) : vec<T>{};
    store(w.out + t * W, out);
    if (p.z.data) {
      const vec<T> z = read(p.z.at(s.b, place, s.group) + within, lanes), gate = logistic(z);
      store(w.gate + t * W, gate);
      dout *= z * gate;
    }
    store(w.dout + t * W, dout);
  }
  const vec<T> D = p.D ? read(p.D + c, lanes) : vec<T>{};
  const T factor = (SIGNED ? 2 : 1) / Power<T>::scale;
  vec<T> dD{}, dbias{};
  std::fill_n(w.dA_chunk, row, T(0));
  for (int64_t t = steps - 1; t >= 0; --t) {
    const int64_t place = p.place(s.group, start + t), at = (s.b * p.length + place) * p.channels + c;
    const T *B = p.B.at(s.b, place, s.group), *C = p.C.at(s.b, place, s.group);
    const bool starts = p.starts(s.b, start + t);
    const vec<T> delta = load(w.delta + t * W), dout = load(w.dout + t * W);
    const StepGradient<T> g = retreat<T, SIGNED>(
        A, delta, load(w.x + t * W), dout, B, C, p.n, starts ? w.zeros : w.states + t * row, w.states + (t + 1) * row,
        w.powers + t * row, carry, w.dA_chunk, w.sum_B + t * row, w.sum_C + t * row);
    if (starts) std::fill_n(carry, row, T(0));
    const vec<T> u = read(p.u.at(s.b, place, s.group) + within, lanes);
    write(d.u + at, g.x * delta + dout * D, lanes);
    dD += dout * u;
    vec<T> ddt = g.x * u + g.delta * factor;
    if (p.softplus) ddt *= load(w.slope + t * W);
    write(d.dt + at, ddt, lanes);
    dbias += ddt;
    if (p.z.data) {
      const vec<T> z = read(p.z.at(s.b, place, s.group) + within, lanes), gate = load(w.gate + t * W);
      const vec<T> into = dy.data ? read(dy.at(s.b, place, s.group) + within, lanes) : vec<T>{};
      write(d.z + at, into * (load(w.out + t * W) + D * u) * gate * (z - z * gate + T(1)), lanes);
    }
  }
  for (int64_t i = 0; i < row; i += W) store(w.dA + block * row + i, load(w.dA + block * row + i) + load(w.dA_chunk + i));
  store(w.dD + block * W, load(w.dD + block * W) + dD);
  store(w.dbias + block * W, load(w.dbias + block * W) + dbias);
}

template <class T, bool SIGNED>
int backward_slice(const Problem<T>& p, const Slice<T>& s, const T* before, Groups<T> dy, const T* dlast,
                   const Gradients<T>& d) {
  constexpr int W = width<T>;
  const int64_t row = p.n * W, blocks = s.blocks();
  Scratch<T> scratch(Back<T>::vectors(p, blocks));
  if (!scratch) return kNoMemory;
  const Back<T> w(scratch, p, blocks);
  for (int64_t j = 0; j < blocks; ++j) {
    const int64_t c = s.channel(j);
    gather(p.A + c * p.n, p.n, s.lanes(j), Power<T>::scale, w.A + j * row);
    if (dlast) gather(dlast + (s.b * p.channels + c) * p.n, p.n, s.lanes(j), T(1), w.carry + j * row);
  }
  const int64_t sums = p.batch * p.length * p.groups * p.n;
  for (int64_t k = p.chunks() - 1; k >= 0; --k) {
    const int64_t start = k * p.chunk, steps = std::min(p.chunk, p.length - start);
    std::fill_n(w.sum_B, steps * row, T(0));
    std::fill_n(w.sum_C, steps * row, T(0));
    for (int64_t j = 0; j < blocks; ++j) backward_chunk<T, SIGNED>(p, s, k, j, before, dy, w, d);
    for (int64_t t = 0; t < steps; ++t) {
      const int64_t place = p.place(s.group, start + t);
      const int64_t at = s.index * sums + ((s.b * p.length + place) * p.groups + s.group) * p.n;
      for (int64_t i = 0; i < p.n; ++i) {
        d.B[at + i] = sum(load(w.sum_B + t * row + i * W));
        d.C[at + i] = sum(load(w.sum_C + t * row + i * W));
      }
    }
  }
  for (int64_t j = 0; j < blocks; ++j) {
    const int64_t at = s.b * p.channels + s.channel(j);
    scatter(w.dA + j * row, p.n, s.lanes(j), T(SIGNED ? 2 : 1), d.A + at * p.n);
    scatter(w.carry + j * row, p.n, s.lanes(j), T(1), d.initial + at * p.n);
    write(d.D + at, load(w.dD + j * W), s.lanes(j));
    write(d.dt_bias + at, load(w.dbias + j * W), s.lanes(j));
  }
  return 0;
}

// Runs body(slice) for every slice; returns the worst status.
template <class T, class Body> int over_slices(const Problem<T>& p, int threads, const Body& body) {
  const Cut cut(p);
  const int64_t work = p.length * p.n * std::min(cut.width, p.channels / p.groups);
  std::atomic<int> worst{0};
  parallel_for(p.batch * cut.slices, threads, kGrain / std::max<int64_t>(1, work) + 1, [&](int64_t item) {
    const int status = body(Slice<T>(p, cut, item));
    for (int seen = worst; status > seen && !worst.compare_exchange_weak(seen, status);) {}
  });
  return worst;
}

template <class T> int forward(const Problem<T>& p, T* y, T* last, T* before, int threads) {
  if (!orders_fit(p)) return kNoOrder;
  const int status = over_slices(p, threads, [&](const Slice<T>& s) {
    return p.is_signed ? forward_slice<T, true>(p, s, y, last, before) : forward_slice<T, false>(p, s, y, last, before);
  });
  bool finite = true;
  for (int64_t i = 0; i < p.channels * p.n; ++i) finite &= p.A[i] - p.A[i] == T(0);
  return std::max(status, finite ? 0 : kNonFinite);
}

template <class T>
int backward(const Problem<T>& p, const T* before, Groups<T> dy, const T* dlast, const Gradients<T>& d, int threads) {
  const Cut cut(p);
  const int64_t sums = p.batch * p.length * p.groups * p.n, states = p.channels * p.n;
  const bool split = cut.per_group > 1;
  const std::unique_ptr<T[]> parts(
      new (std::nothrow) T[2 * sums * cut.per_group * split + p.batch * (states + 2 * p.channels)]);
  if (!parts) return kNoMemory;
  Gradients<T> own = d;
  own.A = parts.get(), own.D = own.A + p.batch * states, own.dt_bias = own.D + p.batch * p.channels;
  if (split) own.B = own.dt_bias + p.batch * p.channels, own.C = own.B + sums * cut.per_group;
  const int status = over_slices(p, threads, [&](const Slice<T>& s) {
    return p.is_signed ? backward_slice<T, true>(p, s, before, dy, dlast, own)
                       : backward_slice<T, false>(p, s, before, dy, dlast, own);
  });
  if (status) return status;
  add_up(own.A, p.batch, states, d.A, threads);
  if (d.D) add_up(own.D, p.batch, p.channels, d.D, threads);
  if (d.dt_bias) add_up(own.dt_bias, p.batch, p.channels, d.dt_bias, threads);
  if (split) add_up(own.B, cut.per_group, sums, d.B, threads), add_up(own.C, cut.per_group, sums, d.C, threads);
  return 0;
}

}  // namespace
}  // namespace scanweave

// Strides count numbers. The last axis of every sequence lies side by side; parameters, states and all outputs are
// contiguous. Null stands for an absent tensor. Returns 0; 1 where A or a last state is not finite; 2 where memory ran
// out; 3 where an order does not visit each place once.
#define SCANWEAVE_SEQUENCE(T, X) const T *X, int64_t X##_batch, int64_t X##_place, int64_t X##_group
#define SCANWEAVE_GROUPS(X) \
  { X, X##_batch, X##_place, X##_group }
#define SCANWEAVE_PROBLEM(T)                                                                                        \
  SCANWEAVE_SEQUENCE(T, u), SCANWEAVE_SEQUENCE(T, dt), SCANWEAVE_SEQUENCE(T, B), SCANWEAVE_SEQUENCE(T, C),          \
      SCANWEAVE_SEQUENCE(T, z), const T *A, const T *D, const T *dt_bias, const T *initial, const uint8_t *reset,   \
      const int64_t *orders, int64_t batch, int64_t length, int64_t channels, int64_t groups, int64_t n,            \
      int64_t chunk, int softplus, int is_signed
#define SCANWEAVE_PACKED                                                                                            \
  {SCANWEAVE_GROUPS(u), SCANWEAVE_GROUPS(dt), SCANWEAVE_GROUPS(B), SCANWEAVE_GROUPS(C), SCANWEAVE_GROUPS(z),        \
   A, D, dt_bias, initial, reset, orders, batch, length, channels, groups, n, chunk, softplus != 0, is_signed != 0}

#define SCANWEAVE_SELECTIVE_SCAN(NAME, T)                                                                           \
  SCANWEAVE_EXPORT int scanweave_selective_scan_forward_##NAME(SCANWEAVE_PROBLEM(T), T* y, T* last, T* before,      \
                                                               int threads) {                                       \
    return scanweave::forward<T>(SCANWEAVE_PACKED, y, last, before, threads);                                       \
  }                                                                                                                 \
  SCANWEAVE_EXPORT int scanweave_selective_scan_backward_##NAME(                                                    \
      SCANWEAVE_PROBLEM(T), const T* before, SCANWEAVE_SEQUENCE(T, dy), const T* dlast, T* du, T* ddt, T* dA, T* dB, \
      T* dC, T* dD, T* dz, T* ddt_bias, T* dinitial, int threads) {                                                 \
    return scanweave::backward<T>(SCANWEAVE_PACKED, before, SCANWEAVE_GROUPS(dy), dlast,                         \
                                  {du, ddt, dA, dB, dC, dD, dz, ddt_bias, dinitial}, threads);                      \
  }

SCANWEAVE_SELECTIVE_SCAN(f32, float)
SCANWEAVE_SELECTIVE_SCAN(f64, double)
