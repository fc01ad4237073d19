// A matrix packed once for many products with few rows: column panels as narrow as the registers, each side by side.
#pragma once
#include <algorithm>

#include "small_matrix.h"

namespace scanweave {

// `depth` x `columns`; panels of `vectors` vectors and room for `height` rows, the last filled up with zeros.
template <class T> struct Panels {
  static constexpr int W = width<T>;
  T* data;
  int64_t depth, height, count;
  int vectors;

  // How many vectors a panel should have for products with so many rows: enough sums at once to hide their latency.
  static int fitting(int64_t rows, int64_t columns) {
    const int most = rows == 1 ? 8 : rows <= 3 ? 4 : 2;
    const int64_t whole = (columns + W - 1) / W;
    int vectors = 1;
    while (vectors < most && vectors < whole) vectors *= 2;
    return vectors;
  }
  static int64_t most_columns(int64_t columns) { return padded(columns, W) + 7 * W; }

  Panels(T* data, int64_t rows, int64_t columns, int64_t depth)
      : data(data), depth(depth), height(padded(depth, W)), vectors(fitting(rows, columns)) {
    count = (padded(columns, W) / W + vectors - 1) / vectors;
  }
  int64_t columns() const { return count * vectors * W; }
  // The rows of the vector of columns that begins at a multiple of the width.
  Rows<T> vector(int64_t column) const {
    const int64_t v = column / W;
    return {data + v / vectors * height * vectors * W + v % vectors * W, int64_t(vectors) * W};
  }
};

template <class T, int M, int N>
inline void tile_of(int64_t m, Left<T> left, const Panels<T>& right, const T* panel, Rows<T> out, const Onto<T>& onto) {
  if (m == M) tile<T, M, N>(left, right.depth, {panel, N * width<T>}, out, onto);
  else if constexpr (M > 1) tile_of<T, M - 1, N>(m, left, right, panel, out, onto);
}

template <class T, int M, int N>
void multiply_panels(int64_t rows, Left<T> left, const Panels<T>& right, Rows<T> out, Rows<const T> from) {
  const int64_t parts = (rows + M - 1) / M;
  for (int64_t p = 0; p < right.count; ++p) {
    const T* const panel = right.data + p * right.height * N * width<T>;
    const int64_t column = p * N * width<T>;
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t first = rows * i / parts, m = rows * (i + 1) / parts - first;
      tile_of<T, M, N>(m, {left.data + first * left.row, left.row, left.column}, right, panel,
                       {out.row(first) + column, out.stride}, {{from.row(first) + column, from.stride}});
    }
  }
}

// out = from + left right. `from` may be `out`, or one row for all (stride 0).
template <class T>
void multiply(int64_t rows, Left<T> left, const Panels<T>& right, Rows<T> out, Rows<const T> from) {
  switch (right.vectors) {
    case 1: return multiply_panels<T, 6, 1>(rows, left, right, out, from);
    case 2: return multiply_panels<T, 6, 2>(rows, left, right, out, from);
    case 4: return multiply_panels<T, 3, 4>(rows, left, right, out, from);
    default: return multiply_panels<T, 1, 8>(rows, left, right, out, from);
  }
}

}  // namespace scanweave
