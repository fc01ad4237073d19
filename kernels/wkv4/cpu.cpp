// wkv4 on the CPU: vectors over channels, which one thread takes through time in one pass.
//
// The forward pass keeps the state before each chunk, the backward pass recomputes a chunk's states from it. How work is
// cut depends on the shape alone, and sums over the batch are added in its order: the number of threads changes no bit.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "parallel.h"
#include "rows.h"
#include "simd.h"

namespace scanweave {
namespace {

constexpr int64_t kGrain = 4096;  // steps times channels that are worth waking a thread for
constexpr int kBlocks = 2;        // vectors of neighbouring channels side by side: a line of the cache, two chains
constexpr int64_t kMostSteps = 64;
constexpr int kBadRate = 1, kNoMemory = 2, kChunkTooLong = 3;

template <class T> struct Problem {
  Rows<T> k, v;
  const T *w, *u, *initial;
  const uint8_t* reset;
  int64_t batch, length, channels, chunk;

  int64_t chunks() const { return (length + chunk - 1) / chunk; }
  int64_t slices() const { return (channels + kBlocks * width<T> - 1) / (kBlocks * width<T>); }
  bool starts(int64_t b, int64_t t) const { return reset && reset[b * length + t]; }
};

template <class V> inline V larger(V a, V b) { return a > b ? a : b; }

// The sums of numerator and denominator, scaled by exp(-m).
template <class T> struct State {
  vec<T> p{}, q{}, m = splat(-static_cast<T>(__builtin_inf()));

  State() = default;
  // From (3, C) in memory.
  State(const T* from, int64_t channels, int lanes)
      : p(read(from, lanes)), q(read(from + channels, lanes)), m(read(from + 2 * channels, lanes)) {}
  void put(T* to, int64_t channels, int lanes) const {
    write(to, p, lanes), write(to + channels, q, lanes), write(to + 2 * channels, m, lanes);
  }
};

// What a step makes of the sums: it fades them and adds its own value.
template <class T> struct Update {
  vec<T> decay, gain, m;

  Update(const State<T>& s, vec<T> k, vec<T> w) : m(larger<vec<T>>(s.m - w, k)) {
    // In this order the rounding of m - w, which would add up over slow decays, drops out.
    decay = vexp((s.m - m) - w);
    gain = vexp(k - m);
  }
  void apply(State<T>& s, vec<T> v) const {
    s.p = decay * s.p + gain * v;
    s.q = decay * s.q + gain;
    s.m = m;
  }
};

// What a step reads: the weights of the sums and of its own value, less a common factor, and the denominator.
template <class T> struct Output {
  vec<T> past, now, total, y;

  Output(const State<T>& s, vec<T> k, vec<T> v, vec<T> u) {
    const vec<T> ahead = u + k - s.m, one = splat(T(1));
    const vec<T> ratio = vexp(ahead < 0 ? ahead : -ahead);
    past = ahead < 0 ? one : ratio;
    now = ahead < 0 ? ratio : one;
    total = past * s.q + now;
    y = (past * s.p + now * v) / total;
  }
};

// Some neighbouring channels of one batch entry.
template <class T> struct Slice {
  int64_t b, first, count;

  Slice(const Problem<T>& p, int64_t item)
      : b(item / p.slices()), first(item % p.slices() * kBlocks * width<T>), count(p.channels - first) {}
  int64_t channel(int j) const { return first + j * width<T>; }
  int lanes(int j) const {
    return static_cast<int>(std::max<int64_t>(0, std::min<int64_t>(width<T>, count - j * width<T>)));
  }
  bool whole() const { return count >= kBlocks * width<T>; }
};

// WHOLE: all lanes of the slice exist, so that no load asks.
template <class T, bool WHOLE> void forward_slice(const Problem<T>& p, const Slice<T>& s, T* y, T* last, T* before) {
  constexpr int W = width<T>;
  State<T> state[kBlocks];
  vec<T> w[kBlocks], u[kBlocks];
  int lanes[kBlocks];
  for (int j = 0; j < kBlocks; ++j) {
    lanes[j] = WHOLE ? W : s.lanes(j);
    w[j] = read(p.w + s.channel(j), lanes[j]), u[j] = read(p.u + s.channel(j), lanes[j]);
    if (p.initial) state[j] = State<T>(p.initial + s.b * 3 * p.channels + s.channel(j), p.channels, lanes[j]);
  }
  for (int64_t t = 0; t < p.length; ++t) {
    if (before && t % p.chunk == 0)
      for (int j = 0; j < kBlocks; ++j)
        state[j].put(before + (s.b * p.chunks() + t / p.chunk) * 3 * p.channels + s.channel(j), p.channels, lanes[j]);
    const bool starts = p.starts(s.b, t);
#pragma GCC unroll 2
    for (int j = 0; j < kBlocks; ++j) {
      if (starts) state[j] = State<T>();
      const vec<T> k = read(p.k.at(s.b, t) + s.channel(j), WHOLE ? W : lanes[j]);
      const vec<T> v = read(p.v.at(s.b, t) + s.channel(j), WHOLE ? W : lanes[j]);
      write(y + (s.b * p.length + t) * p.channels + s.channel(j), Output<T>(state[j], k, v, u[j]).y,
            WHOLE ? W : lanes[j]);
      Update<T>(state[j], k, w[j]).apply(state[j], v);
    }
  }
  for (int j = 0; j < kBlocks; ++j) state[j].put(last + s.b * 3 * p.channels + s.channel(j), p.channels, lanes[j]);
}

// Where the gradients go; those of w and u have room for each batch entry's own (B, C).
template <class T> struct Gradients {
  T *k, *v, *w, *u, *initial;
};

template <class T> struct Step {
  State<T> before;
  vec<T> decay, gain;
};

// Goes back through time with a vector of channels. The sums do not depend on the exponent m that they are scaled by:
// their gradients `back.p`, `back.q` go back by the same decay, and m's own, `back.m`, to the one step that m came from.
template <class T>
void backward_block(const Problem<T>& p, const Slice<T>& s, int j, const T* before, Rows<T> dy, const T* dlast,
                    const Gradients<T>& d) {
  const int64_t c = s.channel(j);
  const int lanes = s.lanes(j);
  const vec<T> w = read(p.w + c, lanes), u = read(p.u + c, lanes), one = splat(T(1));
  Step<T> steps[kMostSteps];
  State<T> back, state;
  vec<T> dw{}, du{};
  for (int64_t n = p.chunks() - 1; n >= 0; --n) {
    const int64_t start = n * p.chunk, count = std::min(p.chunk, p.length - start);
    state = State<T>(before + (s.b * p.chunks() + n) * 3 * p.channels + c, p.channels, lanes);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t t = start + i;
      if (p.starts(s.b, t)) state = State<T>();
      const Update<T> update(state, read(p.k.at(s.b, t) + c, lanes), w);
      steps[i] = {state, update.decay, update.gain};
      update.apply(state, read(p.v.at(s.b, t) + c, lanes));
    }
    if (n == p.chunks() - 1) {
      back.m = vec<T>{};
      if (dlast) {
        back = State<T>(dlast + s.b * 3 * p.channels + c, p.channels, lanes);
        back.m -= back.p * state.p + back.q * state.q;
      }
    }
    vec<T> dw_chunk{}, du_chunk{};
    for (int64_t i = count - 1; i >= 0; --i) {
      const int64_t t = start + i, at = (s.b * p.length + t) * p.channels + c;
      const Step<T>& step = steps[i];
      const vec<T> k = read(p.k.at(s.b, t) + c, lanes), v = read(p.v.at(s.b, t) + c, lanes);
      const Output<T> out(step.before, k, v, u);
      const vec<T> into = (dy.data ? read(dy.at(s.b, t) + c, lanes) : vec<T>{}) / out.total;
      const vec<T> bonus = into * out.now * (v - out.y), ahead = step.before.m - k;
      // Whether m - w exceeds k, without the rounding of m - w; at a tie each side has half of the gradient.
      const vec<T> carried = ahead > w ? one : ahead == w ? splat(T(0.5)) : vec<T>{};
      write(d.k + at, bonus + step.gain * (back.p * v + back.q) + (one - carried) * back.m, lanes);
      write(d.v + at, into * out.now + step.gain * back.p, lanes);
      back.p *= step.decay, back.q *= step.decay, back.m *= carried;
      du_chunk += bonus;
      dw_chunk -= back.p * step.before.p + back.q * step.before.q + back.m;
      back.p += into * out.past, back.q -= into * out.past * out.y;
      if (p.starts(s.b, t)) back.p = back.q = back.m = vec<T>{};
    }
    dw += dw_chunk, du += du_chunk;
  }
  write(d.w + s.b * p.channels + c, dw, lanes);
  write(d.u + s.b * p.channels + c, du, lanes);
  if (!d.initial) return;
  const State<T> first(p.initial + s.b * 3 * p.channels + c, p.channels, lanes);
  back.m += back.p * first.p + back.q * first.q;
  back.put(d.initial + s.b * 3 * p.channels + c, p.channels, lanes);
}

template <class T, class Body> void over_slices(const Problem<T>& p, int threads, const Body& body) {
  const int64_t work = p.length * kBlocks * width<T>;
  parallel_for(p.batch * p.slices(), threads, kGrain / std::max<int64_t>(1, work) + 1,
               [&](int64_t item) { body(Slice<T>(p, item)); });
}

template <class T> int forward(const Problem<T>& p, T* y, T* last, T* before, int threads) {
  over_slices(p, threads, [&](const Slice<T>& s) {
    if (s.whole()) forward_slice<T, true>(p, s, y, last, before);
    else forward_slice<T, false>(p, s, y, last, before);
  });
  bool fine = true;
  for (int64_t c = 0; c < p.channels; ++c) fine &= p.w[c] >= T(0) && p.w[c] - p.w[c] == T(0);
  return fine ? 0 : kBadRate;
}

template <class T>
int backward(const Problem<T>& p, const T* before, Rows<T> dy, const T* dlast, const Gradients<T>& d, int threads) {
  if (p.chunk > kMostSteps) return kChunkTooLong;
  const int64_t size = p.batch * p.channels;
  const std::unique_ptr<T[]> parts(new (std::nothrow) T[2 * size]);
  if (!parts) return kNoMemory;
  Gradients<T> own = d;
  own.w = parts.get(), own.u = own.w + size;
  over_slices(p, threads, [&](const Slice<T>& s) {
    for (int j = 0; j < kBlocks && s.lanes(j); ++j) backward_block(p, s, j, before, dy, dlast, own);
  });
  add_up(own.w, p.batch, p.channels, d.w, threads);
  add_up(own.u, p.batch, p.channels, d.u, threads);
  return 0;
}

}  // namespace
}  // namespace scanweave

// Strides count numbers. Channels lie side by side; parameters, states (.., 3, C) and all outputs are contiguous. Null
// stands for an absent tensor. Returns 0; 1 where w is negative or not finite; 2 where memory ran out; 3 for a chunk
// longer than 64 steps.
#define SCANWEAVE_WKV4_PROBLEM(T)                                                                                 \
  const T *k, int64_t k_batch, int64_t k_step, const T *v, int64_t v_batch, int64_t v_step, const T *w, const T *u, \
      const T *initial, const uint8_t *reset, int64_t batch, int64_t length, int64_t channels, int64_t chunk
#define SCANWEAVE_WKV4_PACKED \
  {{k, k_batch, k_step}, {v, v_batch, v_step}, w, u, initial, reset, batch, length, channels, chunk}
#define SCANWEAVE_WKV4(NAME, T)                                                                                    \
  SCANWEAVE_EXPORT int scanweave_wkv4_forward_##NAME(SCANWEAVE_WKV4_PROBLEM(T), T* y, T* last, T* before,          \
                                                     int threads) {                                                \
    return scanweave::forward<T>(SCANWEAVE_WKV4_PACKED, y, last, before, threads);                                 \
  }                                                                                                                \
  SCANWEAVE_EXPORT int scanweave_wkv4_backward_##NAME(SCANWEAVE_WKV4_PROBLEM(T), const T* before, const T* dy,     \
                                                      int64_t dy_batch, int64_t dy_step, const T* dlast, T* dk,    \
                                                      T* dv, T* dw, T* du, T* dinitial, int threads) {             \
    return scanweave::backward<T>(SCANWEAVE_WKV4_PACKED, before, {dy, dy_batch, dy_step}, dlast,                   \
                                  {dk, dv, dw, du, dinitial}, threads);                                            \
  }

SCANWEAVE_WKV4(f32, float)
SCANWEAVE_WKV4(f64, double)
