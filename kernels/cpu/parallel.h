// Threads for the CPU kernels: OpenMP where it is built in, else one thread.
#pragma once
#include <algorithm>
#include <cstdint>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#define SCANWEAVE_EXPORT extern "C" __attribute__((visibility("default")))

namespace scanweave {

// A forked child inherits OpenMP's bookkeeping but none of its threads, and would wait for them for ever.
inline bool& forked() {
  static bool value = false;
  return value;
}
#if defined(__unix__) || defined(__APPLE__)
static const int watch_forks = pthread_atfork(nullptr, nullptr, [] { forked() = true; });
#endif

// Calls body(i) for i in [0, n). `grain` is the least number of items worth a thread.
template <class Body>
inline void parallel_for(int64_t n, int threads, int64_t grain, const Body& body) {
#ifdef _OPENMP
  const int64_t useful = std::max<int64_t>(1, n / std::max<int64_t>(1, grain));
  const int team = forked() ? 1 : static_cast<int>(std::min<int64_t>(threads, useful));
  if (team > 1 && !omp_in_parallel()) {
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
#endif
  for (int64_t i = 0; i < n; ++i) body(i);
}

// out = the sum of `count` arrays of `size` numbers, in their order.
template <class T> void add_up(const T* parts, int64_t count, int64_t size, T* out, int threads) {
  constexpr int64_t kPiece = 4096;
  parallel_for((size + kPiece - 1) / kPiece, threads, 8, [&](int64_t piece) {
    const int64_t begin = piece * kPiece, end = std::min(size, begin + kPiece);
    std::copy(parts + begin, parts + end, out + begin);
    for (int64_t i = 1; i < count; ++i)
      for (int64_t j = begin; j < end; ++j) out[j] += parts[i * size + j];
  });
}

}  // namespace scanweave
