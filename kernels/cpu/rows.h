// Sequences (B, L, C) in memory, and vectors of their channels of which some lanes may be missing.
#pragma once
#include "simd.h"

namespace scanweave {

// Strides over batch and time; what follows lies side by side. Null data: absent.
template <class T> struct Rows {
  const T* data;
  int64_t batch, step;
  const T* at(int64_t b, int64_t t) const { return data + b * batch + t * step; }
};

template <class T> inline vec<T> read(const T* p, int lanes) {
  return lanes == width<T> ? load(p) : load_part(p, lanes);
}
template <class T> inline void write(T* p, vec<T> v, int lanes) {
  if (lanes == width<T>) store(p, v);
  else store_part(p, v, lanes);
}

}  // namespace scanweave
