// One call of a recurrence with a matrix state: its tensors, how its work is cut, and the memory it is done in.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>

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

}  // namespace scanweave
