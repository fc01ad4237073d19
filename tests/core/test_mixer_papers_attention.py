"""The mixers whose state is an average or fades by gates alone, each against its paper's formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scanweave.core import ConfigError, create_mixer
from scanweave.core.mixers.lightnet import EMPTY, running_logsumexp
from tests.core.papers import draw, make, stir

silu, sigmoid = nn.functional.silu, torch.sigmoid


def aaren_formula(mixer, x):
    """``o_t = softmax(q K_{<=t}^T / sqrt(d)) V_{<=t}`` with one query for all t."""
    L, H = len(x), mixer.heads
    k, v = (project(x).reshape(L, H, -1) for project in (mixer.k_proj, mixer.v_proj))
    scores = (k * mixer.query).sum(-1) / k.shape[-1] ** 0.5
    o = [torch.einsum("ih,ihd->hd", scores[: t + 1].softmax(0), v[: t + 1]).flatten() for t in range(L)]
    return mixer.o_proj(torch.stack(o))


def hgrn_formula(mixer, x):
    """``h_t = lambda_t exp(i theta) h_{t-1} + (1 - lambda_t) c_t``, ``lambda = gamma + (1 - gamma) sigmoid(mu)``."""
    real, imaginary = mixer.in_proj(x).chunk(2, -1)
    c = torch.complex(silu(real), silu(imaginary))
    keep = mixer.lower_bound + (1 - mixer.lower_bound) * sigmoid(mixer.f_proj(x))
    turn = torch.exp(1j * mixer.theta)
    h, outputs = torch.zeros_like(c[0]), []
    for t in range(len(x)):
        h = keep[t] * turn * h + (1 - keep[t]) * c[t]
        outputs.append(torch.cat([h.real, h.imag]))
    return mixer.out_proj(mixer.norm(silu(mixer.g_proj(x)) * torch.stack(outputs)))


def lightnet_formula(mixer, x):
    """Each key feature's softmax over all steps so far weighs the values: no recurrence at all."""
    L, H = len(x), mixer.heads
    q, k, v = (project(x).reshape(L, H, -1) for project in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    outputs = []
    for t in range(L):
        S = torch.einsum("ihk,ihv->hkv", k[: t + 1].softmax(0), v[: t + 1])
        o = torch.einsum("hk,hkv->hv", silu(q[t]), S)
        outputs.append((o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten() * mixer.norm.weight)
    return mixer.o_proj(silu(mixer.g_proj(x)) * torch.stack(outputs))


@pytest.mark.parametrize(
    ("name", "options", "formula"),
    [
        ("aaren", {"head_dim": 4}, aaren_formula),
        ("hgrn", {}, hgrn_formula),
        ("hgrn", {"expand": 1.5, "lower_bound": 0.4}, hgrn_formula),
        ("lightnet", {"head_dim": 4}, lightnet_formula),
    ],
)
def test_equals_the_papers_formula(name, options, formula):
    mixer = stir(make(name, 8, **options))
    x = draw(2, 15, 8)
    y, _ = mixer(x)
    torch.testing.assert_close(y, torch.stack([formula(mixer, row) for row in x]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("level", [0.0, 300.0, -300.0])
def test_running_logsumexp_survives_levels_far_apart(level):
    """What came before may lie far above or below what follows, and sequences far from each other."""
    torch.manual_seed(0)
    k = torch.randn(2, 12, 3, dtype=torch.float64)
    k[:, 6:] += 500
    before = torch.randn(2, 3, dtype=torch.float64) + level
    before[0, 0] = EMPTY
    whole = torch.cat([before.unsqueeze(1), k], 1)
    torch.testing.assert_close(running_logsumexp(k, before, None), whole.logcumsumexp(1)[:, 1:])
    reset = torch.zeros(2, 12, dtype=torch.bool)
    reset[:, 4] = reset[:, 9] = True
    k[:, 9:] -= 900
    pieces = [whole[:, :5].logcumsumexp(1)[:, 1:], k[:, 4:9].logcumsumexp(1), k[:, 9:].logcumsumexp(1)]
    single = running_logsumexp(k.float(), before.float(), reset)
    torch.testing.assert_close(single.double(), torch.cat(pieces, 1), rtol=1e-5, atol=1e-4)


def test_hgrn_forgets_no_faster_than_its_floor():
    mixer = make("hgrn", 4, lower_bound=0.9)
    with torch.no_grad():
        mixer.f_proj.bias.fill_(-50)
    x = draw(1, 1, 4)
    _, first = mixer(x)
    _, last = mixer(torch.zeros(1, 10, 4, dtype=x.dtype), first)
    fresh = mixer(torch.zeros(1, 10, 4, dtype=x.dtype))[1]
    difference = torch.view_as_complex(last[0] - fresh[0]).abs()
    torch.testing.assert_close(difference, torch.view_as_complex(first[0]).abs() * 0.9**10)


@pytest.mark.parametrize("bound", [-0.1, 1.0])
def test_hgrn_refuses_a_floor_that_is_none(bound):
    with pytest.raises(ConfigError, match=r"HGRN: lower_bound is .*, expected a number in \[0, 1\)"):
        create_mixer("hgrn", 4, lower_bound=bound)
