"""Which backend serves a call, and how it is forced."""

from __future__ import annotations

import pytest
import torch

from scanweave.kernels import BACKENDS, BackendError, cpu, dispatch, linear_scan, served_by, use_backend

ONES = torch.ones(1, 3, 1)


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the registry by one op whose forms note their names; ``triton`` refuses the CPU."""
    called: list[str] = []

    def form(name: str) -> dispatch.Kernel:
        return dispatch.Kernel(
            lambda: called.append(name), None, lambda t: "it needs a GPU" if name == "triton" else None
        )

    monkeypatch.setattr(dispatch, "_kernels", {})
    monkeypatch.delenv("SCANWEAVE_BACKEND", raising=False)
    for name in BACKENDS:
        dispatch.register_kernel("op", name, form(name))
    return called


def test_the_default_order(forms: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert dispatch.select("op", torch.empty(0)) == "cpu"
    assert dispatch.select("op", torch.empty(0, device="meta")) == "chunked"
    dispatch.register_kernel("op", "triton", dispatch.Kernel(lambda: None, None, dispatch.always))
    assert dispatch.select("op", torch.empty(0, device="meta")) == "triton"
    dispatch.register_kernel("op", "cpu", dispatch.Kernel(lambda: None, None, lambda t: "no library"))
    assert dispatch.select("op", torch.empty(0)) == "chunked"


def test_an_argument_beats_the_block_beats_the_environment(forms: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANWEAVE_BACKEND", "reference")
    assert dispatch.select("op", torch.empty(0)) == "reference"
    with use_backend("chunked"):
        assert dispatch.select("op", torch.empty(0)) == "chunked"
        with use_backend("cpu"):
            assert dispatch.select("op", torch.empty(0)) == "cpu"
            assert dispatch.select("op", torch.empty(0), "reference") == "reference"
        assert dispatch.select("op", torch.empty(0)) == "chunked"
    assert dispatch.select("op", torch.empty(0)) == "reference"


def test_a_block_left_by_an_error_forces_nothing(forms: list[str]) -> None:
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert dispatch.forced_backend() is None


def test_a_forced_backend_never_falls_back(forms: list[str]) -> None:
    with pytest.raises(BackendError, match=r"op: backend 'triton' cannot serve a torch\.float32 tensor on cpu: it"):
        dispatch.select("op", torch.empty(0), "triton")


@pytest.mark.parametrize("way", ["argument", "block", "environment"])
def test_an_unknown_name_lists_the_known_ones(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = "'fast'; there are triton, cpu, chunked, reference"
    if way == "environment":
        monkeypatch.setenv("SCANWEAVE_BACKEND", "fast")
        with pytest.raises(BackendError, match=f"SCANWEAVE_BACKEND names the backend {known}"):
            linear_scan(ONES, ONES)
    elif way == "block":
        with pytest.raises(BackendError, match=f"use_backend names the backend {known}"), use_backend("fast"):
            pass
    else:
        with pytest.raises(BackendError, match=f"backend= names the backend {known}"):
            linear_scan(ONES, ONES, backend="fast")


def test_served_by_tells_choice_and_reasons(forms: list[str]) -> None:
    choice, reasons = served_by("cpu")["op"]
    assert choice == "cpu"
    assert reasons == {"triton": "it needs a GPU", "cpu": None, "chunked": None, "reference": None}


def test_a_forced_backend_does_not_hide_what_serves(forms: list[str]) -> None:
    with use_backend("triton"):
        assert served_by("cpu")["op"][0] == "cpu"


@pytest.mark.skipif(cpu.library() is None, reason="the C++ kernels were not built")
def test_compiled_code_follows_the_block() -> None:
    """A graph compiled under one choice is not used under another."""
    seen: list[str] = []

    def note(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        seen.extend(n.args[-1] for n in graph.graph.nodes if "linear_scan" in str(n.target))
        return graph

    torch.compiler.reset()
    compiled = torch.compile(linear_scan, fullgraph=True, backend=note)
    for name in ("cpu", "chunked"):
        with use_backend(name), torch.no_grad():
            compiled(ONES, ONES)
    assert seen == ["cpu", "chunked"]
