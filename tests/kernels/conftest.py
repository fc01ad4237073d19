"""Makes Triton's interpreter fit for tests.

Its scan calls the combining function once per element, and every call of a device function patches triton.language
anew: both cost milliseconds.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np


def _scan_by_doubling(self: Any, inputs: tuple[Any, ...]) -> list[Any]:
    """Scan along ``self.axis`` in log2(n) whole-array calls of the combining function, as a GPU does."""
    types = [x.dtype for x in inputs]
    arrays = [np.moveaxis(x.handle.data, self.axis, 0).copy() for x in inputs]
    distance = 1
    while distance < len(arrays[0]):
        earlier = [np.concatenate([x[:distance], x[:-distance]]) for x in arrays]
        found = self.combine_fn.fn(*map(self.to_tensor, earlier, types), *map(self.to_tensor, arrays, types))
        found = found if isinstance(found, tuple) else (found,)
        for x, merged in zip(arrays, found, strict=True):
            x[distance:] = merged.handle.data[distance:]
        distance *= 2
    return [
        self.to_tensor(np.ascontiguousarray(np.moveaxis(x, 0, self.axis)), t)
        for x, t in zip(arrays, types, strict=True)
    ]


def _call_device_function(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Call it, with the language patched for its module at the first such call only."""
    seen = [m for m in (tl, tl.core) if any(value is m for value in self.fn.__globals__.values())]
    if any(tl.core.is_builtin(m.load) for m in seen):
        interpreter._patch_lang(self.fn)
    return self.rewrite()(*args, **kwargs)


if os.environ.get("TRITON_INTERPRET") == "1":
    from triton import language as tl
    from triton.runtime import interpreter

    interpreter.InterpretedFunction.__call__ = _call_device_function
    interpreter.ScanOps.generic_scan = _scan_by_doubling
