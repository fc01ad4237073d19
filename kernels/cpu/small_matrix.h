// Products and transposes of matrices that fit into the first-level cache.
//
// Rows are as long as a multiple of the vector width and padded with zeros, so that no loop has a remainder.
#pragma once
#include "simd.h"

namespace scanweave {

inline int64_t padded(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Entry (i, j) is data[i * row + j * column]: exchanging the two strides transposes.
template <class T> struct Left {
  const T* data;
  int64_t row, column;
};

template <class T> struct Rows {
  T* data;
  int64_t stride;
  T* row(int64_t i) const { return data + i * stride; }
};

// What a product is added to: factor[i * factor_stride] * from[i, :]. Without data it is zero, without a factor 1.
template <class T> struct Onto {
  Rows<const T> from{nullptr, 0};
  const T* factor = nullptr;
  int64_t factor_stride = 0;
};

// M rows and N vectors of columns of a product, held in registers.
template <class T, int M, int N>
inline void tile(Left<T> left, int64_t depth, Rows<const T> right, Rows<T> out, const Onto<T>& onto) {
  constexpr int W = width<T>;
  vec<T> sums[M][N];
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) sums[i][j] = onto.from.data ? load(onto.from.row(i) + j * W) : vec<T>{};
  if (onto.factor)
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) sums[i][j] *= onto.factor[i * onto.factor_stride];
  const T *a = left.data, *b = right.data;
  for (int64_t p = 0; p < depth; ++p, a += left.column, b += right.stride) {
    vec<T> r[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) r[j] = load(b + j * W);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const T x = a[i * left.row];
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) sums[i][j] += r[j] * x;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) store(out.row(i) + j * W, sums[i][j]);
}

// M rows of a product, all columns, N vectors at a time.
template <class T, int M, int N>
void strip(Left<T> left, int64_t depth, Rows<const T> right, Rows<T> out, int64_t columns, Onto<T> onto) {
  constexpr int W = width<T>;
  const auto step = [&](int64_t by) {
    right.data += by, out.data += by, columns -= by;
    if (onto.from.data) onto.from.data += by;
  };
  for (; columns >= N * W; step(N * W)) tile<T, M, N>(left, depth, right, out, onto);
  for (; columns > 0; step(W)) tile<T, M, 1>(left, depth, right, out, onto);
}

// out = factor * from + left right: `rows` x `columns`, columns a multiple of the width, `depth` the summed axis. `out`
// may be `from`. Each column's sum is taken in the order of `depth`, however rows and columns are cut.
template <class T>
void multiply(int64_t rows, int64_t columns, int64_t depth, Left<T> left, Rows<const T> right, Rows<T> out,
              Onto<T> onto = {}) {
  const int64_t parts = (rows + 5) / 6, most = parts ? (rows + parts - 1) / parts : 0;
  while (rows > 0) {
    const int64_t m = rows < most ? rows : most;
    switch (m) {
      case 1: strip<T, 1, 8>(left, depth, right, out, columns, onto); break;
      case 2: strip<T, 2, 4>(left, depth, right, out, columns, onto); break;
      case 3: strip<T, 3, 4>(left, depth, right, out, columns, onto); break;
      case 4: strip<T, 4, 2>(left, depth, right, out, columns, onto); break;
      case 5: strip<T, 5, 2>(left, depth, right, out, columns, onto); break;
      default: strip<T, 6, 2>(left, depth, right, out, columns, onto);
    }
    rows -= m, left.data += m * left.row, out.data += m * out.stride;
    if (onto.from.data) onto.from.data += m * onto.from.stride;
    if (onto.factor) onto.factor += m * onto.factor_stride;
  }
}

// out = the transpose of `rows` x `columns`, columns a multiple of the width; out's rows are padded with zeros.
template <class T> void transpose(int64_t rows, int64_t columns, Rows<const T> from, Rows<T> out) {
  constexpr int W = width<T>;
  for (int64_t i = 0; i < rows; i += W)
    for (int64_t j = 0; j < columns; j += W) {
      vec<T> v[W];
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) v[r] = i + r < rows ? load(from.row(i + r) + j) : vec<T>{};
      // Squares of 1, 2, 4 ... lanes change places across the diagonal.
#pragma GCC unroll 4
      for (int s = W / 2; s > 0; s /= 2)
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r)
          if (!(r & s)) {
            const vec<T> a = v[r], b = v[r + s];
#pragma GCC unroll 16
            for (int l = 0; l < W; ++l) v[r][l] = l & s ? b[l - s] : a[l];
#pragma GCC unroll 16
            for (int l = 0; l < W; ++l) v[r + s][l] = l & s ? b[l] : a[l + s];
          }
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) store(out.row(j + r) + i, v[r]);
    }
}

// Copies n numbers times a factor, and zeros up to the next multiple of the width.
template <class T> inline void pack(const T* from, int64_t n, T factor, T* to) {
  constexpr int W = width<T>;
  int64_t i = 0;
  for (; i + W <= n; i += W) store(to + i, load(from + i) * factor);
  if (i < n) store(to + i, load_part(from + i, static_cast<int>(n - i)) * factor);
}

// Copies n numbers times a factor out of a padded row.
template <class T> inline void unpack(const T* from, int64_t n, T factor, T* to) {
  constexpr int W = width<T>;
  int64_t i = 0;
  for (; i + W <= n; i += W) store(to + i, load(from + i) * factor);
  if (i < n) store_part(to + i, load(from + i) * factor, static_cast<int>(n - i));
}

// The dot product of two padded rows.
template <class T> inline T dot(const T* a, const T* b, int64_t n) {
  vec<T> total{};
  for (int64_t i = 0; i < n; i += width<T>) total += load(a + i) * load(b + i);
  return sum(total);
}

}  // namespace scanweave
