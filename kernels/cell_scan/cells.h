// The cells of cell_scan: what one step makes of the gates, and its gradient, on vectors of units.
//
// A cell is one struct. `x` are the gates' inputs, `q` the recurrent products with the bias, one vector a gate. `s` are
// the states, h first: forward turns the old ones into the new. `kept` is what backward reads of a step, in the planes'
// order; states other than h that it needs of the step before are the planes from `carried` on, `before[1]` and so on;
// `before[0]` is the old h. Backward turns the gradients `d` of the new states into those of the old, less what comes
// through the product, and gives the gradients `dx` of the inputs and `dq` of the products.
#pragma once
#include "activations.h"

namespace scanweave {

template <class V> struct Elman {
  static constexpr int gates = 1, states = 1, planes = 0, carried = 0, reads = 1;

  static void forward(const V* x, const V* q, V* s, V*) { s[0] = vtanh(x[0] + q[0]); }
  static void backward(const V*, const V*, V h, V* d, V* dx, V* dq) {
    dx[0] = dq[0] = d[0] * (1 - h * h);
    d[0] = V{};
  }
};

template <class V> struct Lstm {
  static constexpr int gates = 4, states = 2, planes = 5, carried = 4, reads = 2;

  static void forward(const V* x, const V* q, V* s, V* kept) {
    const V i = logistic(x[0] + q[0]), f = logistic(x[1] + q[1]), g = vtanh(x[2] + q[2]), o = logistic(x[3] + q[3]);
    s[1] = f * s[1] + i * g;
    s[0] = o * vtanh(s[1]);
    kept[0] = i, kept[1] = f, kept[2] = g, kept[3] = o, kept[4] = s[1];
  }
  static void backward(const V* kept, const V* before, V, V* d, V* dx, V* dq) {
    const V i = kept[0], f = kept[1], g = kept[2], o = kept[3], level = vtanh(kept[4]);
    const V dc = d[1] + d[0] * o * (1 - level * level);
    dx[0] = dq[0] = dc * g * i * (1 - i);
    dx[1] = dq[1] = dc * before[1] * f * (1 - f);
    dx[2] = dq[2] = dc * i * (1 - g * g);
    dx[3] = dq[3] = d[0] * level * o * (1 - o);
    d[0] = V{}, d[1] = dc * f;
  }
};

template <class V> struct Gru {
  static constexpr int gates = 3, states = 1, planes = 4, carried = 4, reads = 1;

  static void forward(const V* x, const V* q, V* s, V* kept) {
    const V r = logistic(x[0] + q[0]), z = logistic(x[1] + q[1]), n = vtanh(x[2] + r * q[2]);
    s[0] = n + z * (s[0] - n);
    kept[0] = r, kept[1] = z, kept[2] = n, kept[3] = q[2];
  }
  static void backward(const V* kept, const V* before, V, V* d, V* dx, V* dq) {
    const V r = kept[0], z = kept[1], n = kept[2], dn = d[0] * (1 - z) * (1 - n * n);
    dx[0] = dq[0] = dn * kept[3] * r * (1 - r);
    dx[1] = dq[1] = d[0] * (before[0] - n) * z * (1 - z);
    dx[2] = dn, dq[2] = dn * r;
    d[0] *= z;
  }
};

// EXPONENTIAL: the forget gate is exp instead of the logistic function. A state with n = 0 is empty: its m is no bound.
template <class V, bool EXPONENTIAL> struct Slstm {
  static constexpr int gates = 4, states = 4, planes = 7, carried = 4, reads = 3;

  static void forward(const V* x, const V* q, V* s, V* kept) {
    const V in = x[0] + q[0], forget = x[1] + q[1], z = vtanh(x[2] + q[2]), o = logistic(x[3] + q[3]), none = V{};
    V log_f = forget, slope = none + 1;
    if (!EXPONENTIAL) {
      const V e = exp_minus_abs(forget);
      log_f = (forget < 0 ? forget : none) - log1p_unit(e);
      slope = (forget < 0 ? slope : e) / (1 + e);
    }
    const V past = log_f + s[3], top = past > in ? past : in, m = s[2] == 0 ? in : top;
    const V i = exp_minus_abs(in - m), f = s[2] == 0 ? none : exp_minus_abs(past - m);
    s[1] = f * s[1] + i * z, s[2] = f * s[2] + i, s[3] = m;
    s[0] = o * s[1] / s[2];
    kept[0] = i, kept[1] = f, kept[2] = z, kept[3] = o, kept[4] = s[1], kept[5] = s[2], kept[6] = slope;
  }
  static void backward(const V* kept, const V* before, V, V* d, V* dx, V* dq) {
    const V i = kept[0], f = kept[1], z = kept[2], o = kept[3], none = V{};
    const V part = 1 / kept[5], mean = kept[4] * part, into = d[0] * o * part;
    const V dc = d[1] + into, dn = d[2] - into * mean;
    const V di = (dc * z + dn) * i, df = (dc * before[1] + dn * before[2]) * f;
    // m came from the gate whose exponential is 1; from both, half each.
    const V dm = d[3] - di - df, half = none + 0.5f;
    const V from_past = f == 1 ? (i == 1 ? half : 2 * half) : none;
    dx[0] = dq[0] = di + (1 - from_past) * dm;
    dx[1] = dq[1] = (df + from_past * dm) * kept[6];
    dx[2] = dq[2] = dc * i * (1 - z * z);
    dx[3] = dq[3] = d[0] * mean * o * (1 - o);
    d[0] = V{}, d[1] = dc * f, d[2] = dn * f, d[3] = df + from_past * dm;
  }
};

}  // namespace scanweave
