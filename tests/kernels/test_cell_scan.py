"""cell_scan beyond the op contract: PyTorch's and xLSTM's own layers, wider heads, a user's cell."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from scanweave.kernels import BackendError, Cell, cell_scan, register_cell
from scanweave.kernels.cell_scan.cells import CELLS, find_cell

from .contract import BACKWARD_BOUND, FORWARD_BOUND, assert_close, backends, draw_reset, normal
from .table import CASES

CASE = CASES["cell_scan-lstm"]
BUILT_IN = ("elman", "lstm", "gru", "slstm", "slstm_exp")
HEADS, SIZE = 3, 4
LAYERS = {"elman": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}

COMPILED = [name for name in backends(CASE) if name != "triton" or torch.cuda.is_available()]
every_backend = pytest.mark.parametrize("backend", [*COMPILED, "reference"])
compiled = pytest.mark.parametrize("backend", COMPILED)


def _draw(cell: str, length: int, size: int, heads: int, batch: int = 2) -> dict[str, Tensor]:
    generator, gates = torch.Generator().manual_seed(0), len(find_cell(cell).gates)
    state = normal(generator, len(find_cell(cell).states), batch, heads, size).abs()
    return {
        "wx": normal(generator, batch, length, heads, gates, size),
        "R": normal(generator, heads, gates, size, size) / (2 * size**0.5),
        "bias": normal(generator, heads, gates, size),
        "initial_state": state,
    }


def _run(
    cell: str, wx: Tensor, R: Tensor, bias: Tensor, initial_state: Tensor, reset: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    state = initial_state.unbind()
    y, final = cell_scan(wx, R, bias, cell=cell, initial_state=state, reset=reset, backend=backend)
    return y, torch.stack(final)


def _gradients(outputs: tuple[Tensor, ...], inputs: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    weights = [normal(generator, *y.shape).to(y.dtype) for y in outputs]
    return [g.double() for g in torch.autograd.grad(outputs, inputs, weights)]


@compiled
@pytest.mark.parametrize(("cell", "size"), [*product(BUILT_IN, (20, 64))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_heads_match_the_reference(backend: str, cell: str, size: int, dtype: torch.dtype) -> None:
    reset = draw_reset(21)
    results = []
    for precision, form in ((torch.float64, "reference"), (dtype, backend)):
        drawn = {name: x.to(dtype).to(precision).requires_grad_() for name, x in _draw(cell, 21, size, 3).items()}
        outputs = _run(cell, **drawn, reset=reset, backend=form)
        results.append((outputs, _gradients(outputs, list(drawn.values()))))
    (wanted, wanted_gradients), (found, gradients) = results
    for one, other in zip(found, wanted, strict=True):
        assert_close(one.detach(), other.detach(), FORWARD_BOUND[dtype], "outputs")
    for name, one, other in zip(drawn, gradients, wanted_gradients, strict=True):
        assert_close(one, other, BACKWARD_BOUND[dtype], f"gradient of {name}")


@compiled
@pytest.mark.parametrize("cell", BUILT_IN)
def test_gradients_of_both_orders(backend: str, cell: str) -> None:
    drawn = _draw(cell, 3, 2, 1, batch=1)
    reset = torch.tensor([[False, True, False]])

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return _run(cell, *tensors, reset=reset, backend=backend)

    leaves = [x.requires_grad_() for x in drawn.values()]
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


def _blocks(R: Tensor) -> Tensor:
    """Return the recurrent weights of all heads as torch.nn's weight_hh: diagonal blocks, gate by gate."""
    return torch.cat([torch.block_diag(*gate) for gate in R.unbind(1)])


@every_backend
@pytest.mark.parametrize("cell", LAYERS)
def test_equals_the_layer_of_torch(backend: str, cell: str) -> None:
    generator, gates, width = torch.Generator().manual_seed(0), len(find_cell(cell).gates), HEADS * SIZE
    torch.manual_seed(0)  # the layer draws its weights from the global generator
    layer = LAYERS[cell](5, width, batch_first=True)
    R = (normal(generator, HEADS, gates, SIZE, SIZE) / 2).float().requires_grad_()
    with torch.no_grad():
        layer.weight_hh_l0.copy_(_blocks(R))
    x = normal(generator, 2, 40, 5).float()
    state = [normal(generator, 2, width).float().requires_grad_() for _ in find_cell(cell).states]

    # Gate by gate over all features, as torch has them, to head by head.
    wx = (x @ layer.weight_ih_l0.T + layer.bias_ih_l0).unflatten(-1, (gates, HEADS, SIZE)).transpose(2, 3)
    bias = layer.bias_hh_l0.view(gates, HEADS, SIZE).transpose(0, 1)
    parts = tuple(part.view(2, HEADS, SIZE) for part in state)
    y, final = cell_scan(wx, R, bias, cell=cell, initial_state=parts, backend=backend)
    found = (y.flatten(2), *(part.flatten(1) for part in final))

    first = tuple(part.unsqueeze(0) for part in state)
    h, last = layer(x, first if cell == "lstm" else first[0])
    wanted = (h, *(part[0] for part in (last if cell == "lstm" else (last,))))
    for one, other in zip(found, wanted, strict=True):
        assert_close(one.detach(), other.detach(), 1e-5, "outputs")

    shared = [layer.weight_ih_l0, layer.bias_ih_l0, layer.bias_hh_l0, *state]
    *ours, ours_R = _gradients(found, [*shared, R])
    *theirs, theirs_R = _gradients(wanted, [*shared, layer.weight_hh_l0])
    blocks = theirs_R.view(gates, HEADS, SIZE, HEADS, SIZE).diagonal(dim1=1, dim2=3).movedim(-1, 0)
    for one, other in zip([*ours, ours_R], [*theirs, blocks], strict=True):
        assert_close(one, other, 1e-5, "gradient")


@compiled
@pytest.mark.parametrize("cell", ["slstm", "slstm_exp"])
def test_a_fresh_state_has_no_exponent(backend: str, cell: str) -> None:
    """Far below 0, an input gate's exponent would overflow beside a first maximum of 0."""
    drawn = {name: x.float() for name, x in _draw(cell, 3, 4, 1).items()}
    drawn["wx"] = drawn["wx"] - 200
    found = []
    for form in (backend, "reference"):
        leaves = {name: x.clone().requires_grad_() for name, x in drawn.items()}
        fresh = {**leaves, "initial_state": torch.zeros(4, 2, 1, 4, requires_grad=True)}
        y, final = _run(cell, **fresh, reset=None, backend=form)
        found.append([y.detach(), final.detach(), *_gradients((y, final), list(fresh.values()))])
    for one, other in zip(*found, strict=True):
        assert torch.isfinite(one).all()
        assert_close(one, other, 1e-4, "fresh state")


def _mgu(wx: Tensor, recurrent: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A minimal gated unit: one gate that both forgets and accepts."""
    f, n = (wx + recurrent).unbind(2)
    return (torch.lerp(state[0], n.tanh(), f.sigmoid()),)


@pytest.fixture
def mgu():
    yield register_cell(Cell("mgu", gates=("f", "n"), states=("h",), step=_mgu)).name
    del CELLS["mgu"]


def test_a_registered_cell_runs(mgu: str) -> None:
    drawn, reset = _draw(mgu, 70, 3, 2), draw_reset(70)
    results = []
    for backend in (None, "reference"):
        leaves = {name: x.clone().requires_grad_() for name, x in drawn.items()}
        outputs = _run(mgu, **leaves, reset=reset, backend=backend)
        results.append([*outputs, *_gradients(outputs, list(leaves.values()))])
    for one, other in zip(*results, strict=True):
        assert_close(one.detach(), other.detach(), 1e-11, "a registered cell")


@pytest.mark.parametrize("backend", [name for name in backends(CASE) if name != "chunked"])
def test_a_compiled_form_says_which_cells_it_knows(mgu: str, backend: str) -> None:
    drawn = {name: x.float() for name, x in _draw(mgu, 4, 3, 2).items()}
    with pytest.raises(
        BackendError, match=f"'{backend}' cannot serve .* no form of the cell 'mgu', only of elman, lstm"
    ):
        _run(mgu, **drawn, reset=None, backend=backend)


def test_a_cell_is_registered_once(mgu: str) -> None:
    assert register_cell(CELLS[mgu]) is CELLS[mgu]
    with pytest.raises(ValueError, match=r"cell 'mgu' is registered already, with gates \('f', 'n'\)"):
        register_cell(Cell("mgu", gates=("f",), states=("h",), step=_mgu))
    with pytest.raises(ValueError, match=r"cell 'none' has gates \(\) and states \('h',\), expected one of each"):
        register_cell(Cell("none", gates=(), states=("h",), step=_mgu))


def test_names_what_is_no_state() -> None:
    drawn = {name: x.float() for name, x in _draw("lstm", 4, 3, 2).items()}
    h, c = drawn.pop("initial_state")
    with pytest.raises(TypeError, match="initial_state is a tuple of 1, expected a tuple of lstm's h, c"):
        cell_scan(**drawn, initial_state=(h,))
    with pytest.raises(TypeError, match="initial_state is a Tensor, expected a tuple"):
        cell_scan(**drawn, initial_state=h)
    with pytest.raises(ValueError, match=r"initial_state 'c' has shape \(2, 3\), expected \(B, H, D\)"):
        cell_scan(**drawn, initial_state=(h, c[0]))
    with pytest.raises(TypeError, match="initial_state 'c' has dtype int32"):
        cell_scan(**drawn, initial_state=(h, c.int()))
