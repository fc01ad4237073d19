"""Compiles what the Triton backends launch for a GPU that need not be there: ``python -m tests.kernels.aot 90``.

Every row of the table is called on CPU tensors with the launch replaced: it compiles the kernel for the target with the
arguments it got, and runs nothing. Prints one JSON line per kernel: its name, its arguments, its spilled bytes.

``python -m tests.kernels.aot 90 --wide [NAME]`` calls the ops, those whose name begins with NAME, at widths of 64 and
128 instead, and prints a line of each kernel's registers, spilled bytes and shared memory.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from scanweave.kernels import dispatch

from . import wide
from .contract import draw_reset, gradients
from .table import CASES

_TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.bool: "i1",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}


def _source(fn: JITFunction, bound: dict[str, Any]) -> ASTSource:
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(fn.params):
        value = bound.get(parameter.name, parameter.default)
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + _TYPES[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    return ASTSource(fn, signature, constexprs=constants, attrs=attributes)


def _use(ptx: str, arch: int) -> tuple[int, int]:
    """Return a kernel's registers and the bytes that it spills."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        tool, name = get_ptxas(arch).path, sm_arch_from_capability(arch)
        command = [tool, "-v", f"--gpu-name={name}", file.name, "-o", "/dev/null"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spills = (re.findall(pattern, report) for pattern in (r"Used (\d+) reg", r"(\d+) bytes spill stores"))
    return max(map(int, registers)), sum(map(int, spills))


Report = Callable[[JITFunction, str, int, int, int], None]


def _compile_for(arch: int, report: Report) -> None:
    """Let every launch compile its kernel, once per set of argument types, instead of running it."""
    target, seen = GPUTarget("cuda", arch, 32), set()

    def compile_instead(fn: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        bound = {
            **dict(zip(fn.arg_names, args, strict=False)),
            **{k: v for k, v in kwargs.items() if k in fn.arg_names},
        }
        options = {k: v for k, v in kwargs.items() if k not in fn.arg_names}
        source = _source(fn, bound)
        key = f"{fn.__name__} {source.signature} {source.constants} {options}"
        if key not in seen:
            seen.add(key)
            compiled = triton.compile(source, target=target, options=options)
            report(fn, key, *_use(compiled.asm["ptx"], arch), compiled.metadata.shared)

    JITFunction.run = compile_instead


def _serves(op: str) -> bool:
    """Let the op's Triton form serve CPU tensors; return whether there is one."""
    try:
        form = dispatch.kernel(op, "triton")
    except KeyError:
        return False
    dispatch.register_kernel(op, "triton", replace(form, refuses=dispatch.always))
    return True


def main(arch: int) -> None:
    """Compile every kernel of every row of the table."""
    limit = 0

    def report(fn: JITFunction, key: str, registers: int, spills: int, shared: int) -> None:
        print(json.dumps({"kernel": fn.__qualname__, "key": key, "spills": spills, "limit": limit}), flush=True)

    _compile_for(arch, report)
    for case in CASES.values():
        if not _serves(case.op):
            continue
        limit = case.spills
        # One type for each target, where a row has both: all of them on all would take minutes more.
        dtype = torch.bfloat16 if arch >= 90 and torch.bfloat16 in case.dtypes else torch.float32
        for options in case.variants:
            gradients(case, case.draw(130, dtype=dtype), reset=draw_reset(130), backend="triton", **options)


def main_wide(arch: int, prefix: str) -> None:
    """Compile the kernels of the ops whose names begin with ``prefix`` at the widths of models."""
    place = ""

    def report(fn: JITFunction, key: str, registers: int, spills: int, shared: int) -> None:
        print(f"{place} {fn.__name__}: {registers} registers, {spills} bytes spilled, {shared} shared", flush=True)

    _compile_for(arch, report)
    for width, dtype in product((64, 128), (torch.float32, torch.bfloat16)):
        for name, call in wide.calls(width, dtype):
            if name.startswith(prefix):
                _serves(name.partition("-")[0])
                place = f"{name} {width} {str(dtype).removeprefix('torch.')}"
                wide.run(call)


if __name__ == "__main__":
    if "--wide" in sys.argv:
        main_wide(int(sys.argv[1]), "".join(sys.argv[3:]))
    else:
        main(int(sys.argv[1]))
