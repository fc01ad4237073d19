"""ParaGRU and ParaLSTM against their paper's equations, written out step by step."""

from __future__ import annotations

import pytest
import torch

from tests.core.papers import draw, make, stir

sigmoid, tanh = torch.sigmoid, torch.tanh


def paragru_formula(mixer, x):
    """A GRU whose matrices A_z, A_r and A_h are diagonal, the reset gate on h before A_h."""
    (A_z, A_r, A_h), (b_z, b_r, b_h) = mixer.recurrent_weight, mixer.recurrent_bias
    B_z, B_r, B_h = mixer.in_proj.weight.chunk(3)
    h, outputs = torch.zeros_like(b_z), []
    for x_t in x:
        z = sigmoid(A_z * h + B_z @ x_t + b_z)
        r = sigmoid(A_r * h + B_r @ x_t + b_r)
        h = (1 - z) * h + z * tanh(A_h * (h * r) + B_h @ x_t + b_h)
        outputs.append(h)
    return mixer.out_proj(torch.stack(outputs))


def paralstm_formula(mixer, x):
    """An LSTM whose input gate is 1 - f, with diagonal A and peepholes C_f on the old cell and C_o on the new one."""
    (A_f, A_c, A_o, C_f, C_o), (b_f, b_c, b_o) = mixer.recurrent_weight, mixer.recurrent_bias
    B_f, B_c, B_o = mixer.in_proj.weight.chunk(3)
    h, c, outputs = torch.zeros_like(b_f), torch.zeros_like(b_f), []
    for x_t in x:
        f = sigmoid(A_f * h + B_f @ x_t + C_f * c + b_f)
        c = f * c + (1 - f) * tanh(A_c * h + B_c @ x_t + b_c)
        h = sigmoid(A_o * h + B_o @ x_t + C_o * c + b_o) * tanh(c)
        outputs.append(h)
    return mixer.out_proj(torch.stack(outputs))


@pytest.mark.parametrize(("name", "formula"), [("paragru", paragru_formula), ("paralstm", paralstm_formula)])
@pytest.mark.parametrize("expand", [1.0, 1.5])
def test_equals_the_papers_equations(name, formula, expand):
    mixer = stir(make(name, 8, expand=expand))
    x = draw(2, 15, 8)
    y, _ = mixer(x)
    torch.testing.assert_close(y, torch.stack([formula(mixer, row) for row in x]), rtol=1e-9, atol=1e-9)
