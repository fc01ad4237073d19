"""Compiles what the Triton backends launch for a GPU that need not be there: ``python -m tests.kernels.aot 90``.

Every row of the table is called on CPU tensors with the launch replaced: it compiles the kernel for the target with the
arguments it got, and runs nothing. Prints one JSON line per kernel: its name, its arguments, its spilled bytes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from scanweave.kernels import dispatch

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


def _spilled_bytes(ptx: str, arch: int) -> int:
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        tool, name = get_ptxas(arch).path, sm_arch_from_capability(arch)
        command = [tool, "-v", f"--gpu-name={name}", file.name, "-o", "/dev/null"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(map(int, re.findall(r"(\d+) bytes spill stores", report)))


def main(arch: int) -> None:
    """Compile every kernel of every row once per set of argument types."""
    target, seen, limit = GPUTarget("cuda", arch, 32), set(), 0

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
            ptx = triton.compile(source, target=target, options=options).asm["ptx"]
            found = {"kernel": fn.__qualname__, "key": key, "spills": _spilled_bytes(ptx, arch), "limit": limit}
            print(json.dumps(found), flush=True)

    JITFunction.run = compile_instead
    for case in CASES.values():
        try:
            form = dispatch.kernel(case.op, "triton")
        except KeyError:
            continue
        dispatch.register_kernel(case.op, "triton", replace(form, refuses=dispatch.always))
        limit = case.spills
        # One type for each target, where a row has both: all of them on all would take minutes more.
        dtype = torch.bfloat16 if arch >= 90 and torch.bfloat16 in case.dtypes else torch.float32
        for options in case.variants:
            gradients(case, case.draw(130, dtype=dtype), reset=draw_reset(130), backend="triton", **options)


if __name__ == "__main__":
    main(int(sys.argv[1]))
